"""The gate: a file is compared with the checkpoint that it came from. Also: any two models are compared with each other."""
