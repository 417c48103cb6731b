"""What a model has to compute, and what the machine can compute."""
