"""TensorRT engines: building them, checking their precision, and comparing them with their checkpoint."""
