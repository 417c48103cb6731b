"""The reference DETR in plain PyTorch: one file for each concept, with the parameter names of the Hugging Face hub."""
