"""TensorRT: its interface in all versions, the session, and what lies beside an engine."""
