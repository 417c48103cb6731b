"""The real TensorRT API, without TensorRT: its Python bindings over stand-ins for the libraries that they link."""
