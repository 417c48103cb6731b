"""The reference DETR in plain PyTorch: one file a concept, parameter names as on the Hugging Face hub."""
