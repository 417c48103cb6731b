"""Runs a model inside of NVIDIA's Triton Inference Server, in its Python backend.

`detr_export.triton` writes the repository.
"""
