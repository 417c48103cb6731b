"""A TensorRT and a CUDA without a GPU: engines that execute their ONNX file in ONNX Runtime, on host memory.

What it computes are the real numbers; what it checks is that it is used as TensorRT and CUDA want to be used. Its public
attributes are a subset of the real API's, which the contract test holds it to; what tests set and read begins with `_` or
is in `Knobs`.
"""

from tests.tensorrt_double.host_device import HostDevice
from tests.tensorrt_double.module import Knobs, fake_tensorrt

__all__ = ["HostDevice", "Knobs", "fake_tensorrt"]
