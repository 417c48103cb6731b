"""The gate: a file is compared with the checkpoint that it came from."""
