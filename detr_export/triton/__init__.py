"""Writes model repositories for NVIDIA's Triton Inference Server."""
