"""Which library serves a GPU.

Where the caller's pipeline has made a PyCUDA context current, PyCUDA serves, so that both share that context. In all other
cases cuda-python serves, on the device's primary context, which PyTorch and CuPy use too. Without cuda-python PyCUDA serves.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from detr_export.runtimes.backends.cuda.cuda_python import CudaPythonDevice
from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.cuda.pycuda import PyCudaDevice, current_context
from detr_export.runtimes.errors import BackendError, first_line, missing_extra

# The runtime and the driver of cuda-python from 12.8 on, and before, for Python 3.9
_MODULES = (("cuda.bindings.runtime", "cuda.bindings.driver"), ("cuda.cudart", "cuda.cuda"))


def open_device(index: int = 0) -> CudaDevice:
    """Opens a GPU.

    Args:
        index: its number. Where a PyCUDA context is current it has to be the number of that context's device.

    Raises:
        BackendError: no driver, no such GPU, or neither cuda-python nor PyCUDA is installed.
    """
    # A pipeline that has a PyCUDA context has imported PyCUDA.
    pipeline = sys.modules.get("pycuda.driver")
    if pipeline is not None:
        context = current_context(pipeline)
        if context is not None:
            return PyCudaDevice(pipeline, context, index)

    for runtime, driver in _MODULES:
        with contextlib.suppress(ImportError):
            return CudaPythonDevice(importlib.import_module(runtime), importlib.import_module(driver), index)

    try:
        import pycuda.driver
    except ImportError:
        raise missing_extra("cuda-python", "trt") from None
    try:
        pycuda.driver.init()
        context = pycuda.driver.Device(index).retain_primary_context()
    except Exception as error:  # pycuda.driver.Error, and RuntimeError for a number that is too large
        raise BackendError(f"PyCUDA cannot open GPU {index}: {first_line(error)}; check with: nvidia-smi") from error
    return PyCudaDevice(pycuda.driver, context, index)
