"""Compiling with the real TensorRT-RTX, which needs no GPU.

`compile_form` of the fixture `rtx_compiler` is all that a test needs: it takes an ONNX file and the shapes to compile for.
"""
