"""TensorRT engines: building, attesting and comparing them."""
