"""Memory, streams and arrays of a CUDA device, without a deep learning framework."""
