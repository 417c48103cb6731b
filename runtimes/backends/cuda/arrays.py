"""Arrays that lie on the GPU. Arrays of other libraries are read and ours are handed out, without a copy.

It reads DLPack (torch, CuPy, JAX), whose producers make our stream wait for theirs, and `__cuda_array_interface__` (PyCUDA,
Numba). Our arrays have `__cuda_array_interface__`, which `torch.as_tensor`, `cupy.asarray` and Numba take.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda.memory import CudaDevice, Stream
from detr_export.runtimes.errors import InputError

_DLPACK_CUDA, _DLPACK_PINNED, _DLPACK_MANAGED = 2, 3, 13  # DLDeviceType
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode
_DLPACK_NAME = b"dltensor"
_LEGACY_STREAM = 1  # both protocols call the default stream 1; its handle is 0, which they do not allow


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h in its unversioned form, with the fields of DLDevice and DLDataType inside."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceView:
    """An array of another library, C-contiguous on the device."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any  # it is kept alive while the device reads


class DeviceArray:
    """An output on the device. Its memory stays until the last reference is gone; then the session reuses it.

    Attributes:
        address: address of the first element on the device.
        shape, dtype: as in numpy.
        stream: the handle of the stream that writes the array, or None if it is written already. The caller's stream has
            to live as long as the arrays that were made on it.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        stream: Optional[int],
        release: Callable[[], None],
        to_host: Callable[[DeviceArray], np.ndarray],
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.stream = stream
        self._release = release
        self._to_host = to_host

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": _LEGACY_STREAM if self.stream == 0 else self.stream,
            "version": 3,
        }

    def numpy(self) -> np.ndarray:
        """A copy in host memory."""
        return self._to_host(self)

    def __del__(self) -> None:
        self._release()


def is_device_array(value: Any) -> bool:
    """Whether a value is an array on the GPU that tells its address."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in (_DLPACK_CUDA, _DLPACK_MANAGED)
    return hasattr(value, "__cuda_array_interface__")


def described(view: DeviceView) -> np.ndarray:
    """A numpy array of the same shape and dtype, without memory of its own, for checks."""
    return np.broadcast_to(np.empty((), view.dtype), view.shape)


def device_view(name: str, value: Any, device: CudaDevice, stream: Stream) -> DeviceView:
    """Finds where an array lies, and makes `stream` wait for the work that still writes it.

    Raises:
        InputError: it is not C-contiguous, or numpy does not have its dtype.
    """
    if hasattr(value, "__dlpack__") and not isinstance(value, DeviceArray):
        return _from_dlpack(name, value, stream)
    interface = value.__cuda_array_interface__
    producer = interface.get("stream")
    if producer is not None and producer != stream.handle:
        event = device.record(Stream(producer))
        device.wait(stream, event)
        device.release_event(event)  # CUDA frees the event after it has happened
    dtype = np.dtype(interface["typestr"])
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    if strides is not None:
        _require_contiguous(name, shape, tuple(step // dtype.itemsize for step in strides))
    return DeviceView(int(interface["data"][0]), shape, dtype, value)


def _from_dlpack(name: str, value: Any, stream: Stream) -> DeviceView:
    capsule = value.__dlpack__(stream=stream.handle or _LEGACY_STREAM)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # The capsule is not renamed to "used_dltensor", so its own destructor gives the tensor back with the last reference.
    tensor = _DLTensor.from_address(pointer(capsule, _DLPACK_NAME))
    kind = _DLPACK_KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1:
        raise InputError(f"{name} has a dtype that numpy does not have; expected float32, float16, uint8, int64 or int32")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        _require_contiguous(name, shape, tuple(tensor.strides[axis] for axis in range(tensor.ndim)))
    dtype = np.dtype("?" if kind == "b" else f"{kind}{tensor.bits // 8}")
    return DeviceView(int(tensor.data or 0) + tensor.byte_offset, shape, dtype, (value, capsule))


def _require_contiguous(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            raise InputError(f"{name} is not contiguous on the device; with torch, pass {name}.contiguous()")
        expected *= size
