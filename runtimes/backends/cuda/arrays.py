"""Arrays that lie on the GPU. Arrays of other libraries are read and ours are handed out, without a copy.

It speaks DLPack (torch, CuPy, JAX), where a producer makes the consumer's stream wait for its own, and
`__cuda_array_interface__` (PyCUDA, Numba), where the consumer does that. `torch.from_dlpack` and `cupy.from_dlpack` take our
arrays without a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM, CudaDevice, Stream
from detr_export.runtimes.errors import BackendError, InputError

_DLPACK_CUDA, _DLPACK_MANAGED = 2, 13  # DLDeviceType
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode
_DLPACK_NAME = b"dltensor"
_THREADS_STREAM = 2  # cudaStreamPerThread; like the default stream it has the same name in both protocols


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
    """An output on the device. Its memory is used again only after the last reference is gone, and the work that reads it.

    A consumer reads it in a stream of its own while the host goes on, and CUDA does not say which one. So the memory waits,
    on the device, for the work that had been queued when the array was dropped

    - in the default stream, which includes all streams that are not non-blocking and the default streams of threads,
    - in the stream that the run was queued in,
    - in each stream that a consumer named in `__dlpack__`, as torch, CuPy and JAX do. It has to live as long as the array.

    Who reads in another, non-blocking stream has to hold the array until that is done. `__cuda_array_interface__` demands
    the same ("Lifetime management" in its specification), and so do torch (`Tensor.record_stream`) and cuda.core.

    Args:
        device: where it lies.
        address: address of the first element on the device.
        shape, dtype: as in numpy.
        writer: the stream that writes it, until `finish` is called. A caller's has to live as long as the array.
        release: takes the memory back, and the events after which nothing reads it any more.
        to_host: copies the array to host memory.

    Attributes:
        address, shape, dtype: as above.
    """

    def __init__(
        self,
        device: CudaDevice,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        writer: Optional[Stream],
        release: Callable[[list[Any]], None],
        to_host: Callable[[DeviceArray], np.ndarray],
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.writer = writer
        self._device = device
        self._readers: set[int] = set()  # streams that consumers named
        self._release = release
        self._to_host = to_host

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stream(self) -> Optional[int]:
        """The handle of the stream that writes the array, or None if it is written already."""
        return None if self.writer is None else self.writer.handle

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": LEGACY_STREAM.handle if self.stream == 0 else self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device.dlpack_kind, self._device.index

    def __dlpack__(
        self,
        stream: Optional[int] = None,
        *,
        max_version: Optional[tuple[int, int]] = None,
        dl_device: Optional[tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """A DLPack capsule of the same memory, which keeps the array alive. The array API standard has the arguments.

        Args:
            stream: the consumer's stream, which waits for the run: None or 1 for the default one, 2 for that of the thread,
                -1 for none. Memory is not used again before the work that this stream has when the array is dropped.
            max_version: is not used; the capsule has the unversioned form, which consumers take as well.
            dl_device, copy: another device or a copy is refused.

        Raises:
            BufferError: a copy or another device was asked for, or `stream` is 0, which the standard forbids.
        """
        if copy or (dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__()):
            raise BufferError("a DeviceArray is shared where it lies; copy it with numpy(), or after from_dlpack")
        if stream == 0:
            raise BufferError("stream is 0; expected 1 for the default stream, 2 for the thread's, or a handle")
        if stream != -1:
            consumer = LEGACY_STREAM if stream is None else Stream(stream)
            with self._device.active():
                _wait_for(self.writer, consumer, self._device)
            if consumer.handle > _THREADS_STREAM:
                self._readers.add(consumer.handle)
        # numpy makes the capsule, because a destructor in Python may not run while an exception is on its way. It does not
        # touch the memory, whose device it cannot name.
        capsule = np.asarray(_Exported(self)).__dlpack__()
        tensor = _tensor(capsule)
        tensor.device_type, tensor.device_id = self.__dlpack_device__()
        return capsule

    def numpy(self) -> np.ndarray:
        """A copy in host memory."""
        return self._to_host(self)

    def finish(self) -> None:
        """Says that the array is written."""
        self.writer = None

    def __del__(self) -> None:
        # An error here means that CUDA is out of order. Then the memory is lost, but not overwritten while it is read.
        with contextlib.suppress(BackendError), self._device.active():
            self._release(self._reads())

    def _reads(self) -> list[Any]:
        """Events after which nothing reads the memory any more."""
        streams = [LEGACY_STREAM, *map(Stream, self._readers)]
        if self.writer is not None and self.writer.handle not in self._readers:
            streams.append(self.writer)
        events: list[Any] = []
        try:
            events.extend(self._device.record(stream) for stream in streams)
        except BackendError:  # the stream is gone, or another library's that PyCUDA cannot use
            while events:
                self._device.release_event(events.pop())
            self._device.synchronize_all()
        return events


class _Exported:
    """A DeviceArray in the form in which numpy takes memory. numpy keeps it alive."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array
        self.__array_interface__ = {
            "data": (array.address, False),
            "shape": array.shape,
            "typestr": array.dtype.str,
            "version": 3,
        }


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
        InputError: it is on another GPU or not C-contiguous, or numpy does not have its dtype.
    """
    if isinstance(value, DeviceArray):
        _require_here(name, value.__dlpack_device__()[1], device)
        _wait_for(value.writer, stream, device)
        return DeviceView(value.address, value.shape, value.dtype, value)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value, device, stream)
    interface = value.__cuda_array_interface__
    address = int(interface["data"][0])
    _require_here(name, device.gpu_of(address), device)
    producer = interface.get("stream")
    _wait_for(None if producer is None else Stream(producer), stream, device)
    dtype = np.dtype(interface["typestr"])
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    if strides is not None:
        _require_contiguous(name, shape, tuple(step // dtype.itemsize for step in strides))
    return DeviceView(address, shape, dtype, value)


def _from_dlpack(name: str, value: Any, device: CudaDevice, stream: Stream) -> DeviceView:
    kind_of_memory, index = map(int, value.__dlpack_device__())
    _require_here(name, index if kind_of_memory == _DLPACK_CUDA else None, device)
    capsule = value.__dlpack__(stream=stream.handle or LEGACY_STREAM.handle)
    # The capsule is not renamed to "used_dltensor", so its own destructor gives the tensor back with the last reference.
    tensor = _tensor(capsule)
    kind = _DLPACK_KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1:
        raise InputError(f"{name} has a dtype that numpy does not have; expected float32, float16, uint8, int64 or int32")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        _require_contiguous(name, shape, tuple(tensor.strides[axis] for axis in range(tensor.ndim)))
    dtype = np.dtype("?" if kind == "b" else f"{kind}{tensor.bits // 8}")
    return DeviceView(int(tensor.data or 0) + tensor.byte_offset, shape, dtype, (value, capsule))


def _tensor(capsule: Any) -> Any:
    """The DLTensor in a capsule, which is the first member of its DLManagedTensor."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _DLTensor.from_address(pointer(capsule, _DLPACK_NAME))


def _wait_for(writer: Optional[Stream], stream: Stream, device: CudaDevice) -> None:
    """Makes `stream` wait for the work of `writer`."""
    if writer is not None and writer.handle != stream.handle:
        event = device.record(writer)
        device.wait(stream, event)
        device.release_event(event)


def _require_here(name: str, gpu: Optional[int], device: CudaDevice) -> None:
    if gpu is not None and gpu != device.index:
        raise InputError(
            f"{name} lies on GPU {gpu}, and the session runs on GPU {device.index}; "
            f"copy it there first, or open the session with device 'cuda:{gpu}'"
        )


def _require_contiguous(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            raise InputError(f"{name} is not contiguous on the device; with torch, pass {name}.contiguous()")
        expected *= size
