"""Everything that makes a file: checkpoints, the reference model, ONNX export, verification."""
