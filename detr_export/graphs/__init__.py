"""ONNX graphs: tracing, simplifying, checking, casting to fp16, and the forms that TensorRT reads."""
