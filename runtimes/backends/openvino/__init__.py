"""OpenVINO: the session, its cache, and what is read off the ONNX file itself."""
