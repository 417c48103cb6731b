"""Resizing with the numbers of Pillow, of torchvision, and of PyTorch's `interpolate` for masks."""
