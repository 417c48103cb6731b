"""ONNX graphs: tracing, simplifying, checking and casting them, and the forms that TensorRT reads."""
