"""TensorRT: its interface in all versions, the session, the sidecar of an engine, and which engines may be opened."""
