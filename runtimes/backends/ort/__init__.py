"""ONNX Runtime: the session, and the execution providers that a device needs."""
