"""Device and pinned memory, streams, events and graphs: the only file that touches CUDA.

PyCUDA serves where the caller's pipeline has made a PyCUDA context current, so that both share it; cuda-python, on the
device's primary context (PyTorch's and CuPy's, too), in all other cases. What neither can do is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.errors import BackendError, first_line, missing_extra

_RUNTIME_MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # cuda-python from 12.8 on, and before, for Python 3.9
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_DRIVER_TOO_OLD = 35  # cudaErrorInsufficientDriver; also what is said without any driver
_NO_DEVICE = 100  # cudaErrorNoDevice
_MIB = 1 << 20


@dataclass(frozen=True)
class Stream:
    """A queue of work on the device."""

    handle: int  # cudaStream_t
    native: Any = None  # PyCUDA's object, where it is needed


class CudaDevice(ABC):
    """One GPU, ready to use. Its calls need `active()` around them, because CUDA's current device is a thread's.

    Attributes:
        name: as the driver gives it, "NVIDIA H200".
        compute_capability: (9, 0) for that one.
        driver: the newest CUDA version that the driver runs, "13.0".
        captures_graphs: whether `capture` works.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: str
    captures_graphs: bool

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Makes the device current in this thread."""

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Device memory; returns its address. Raises BackendError when there is not enough."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        """Host memory that copies run beside computation from: uint8 (nbytes,)."""

    @abstractmethod
    def free_pinned(self, array: np.ndarray) -> None: ...

    @abstractmethod
    def create_stream(self) -> Stream: ...

    @abstractmethod
    def destroy_stream(self, stream: Stream) -> None: ...

    @abstractmethod
    def adopt_stream(self, stream: Any) -> Stream:
        """The caller's stream: a handle, or an object of torch, CuPy, PyCUDA or cuda.core. It stays the caller's."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Waits until all that was queued is done."""

    @abstractmethod
    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        """Queues a copy from contiguous host memory to the device."""

    @abstractmethod
    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        """Queues a copy from the device to contiguous host memory."""

    @abstractmethod
    def record(self, stream: Stream) -> Any:
        """An event that happens when all that was queued by now is done."""

    @abstractmethod
    def wait(self, stream: Stream, event: Any) -> None:
        """What is queued from now on starts after the event; returns at once."""

    @abstractmethod
    def wait_on_host(self, event: Any) -> None:
        """Returns after the event."""

    @abstractmethod
    def release_event(self, event: Any) -> None: ...

    @abstractmethod
    def capture(self, stream: Stream) -> AbstractContextManager[list[Any]]:
        """Records what the block queues instead of running it; the list then holds the graph."""

    @abstractmethod
    def launch(self, graph: Any, stream: Stream) -> None: ...

    @abstractmethod
    def release_graph(self, graph: Any) -> None: ...


def open_device(index: int = 0) -> CudaDevice:
    """Opens a GPU.

    Args:
        index: its number; with a current PyCUDA context it has to be that context's device.

    Raises:
        BackendError: no driver, no such GPU, or neither cuda-python nor PyCUDA is installed.
    """
    pipeline = sys.modules.get("pycuda.driver")  # who has a context has imported it
    if pipeline is not None:
        context = _current_context(pipeline)
        if context is not None:
            return _PyCudaDevice(pipeline, context, index)
    for name in _RUNTIME_MODULES:
        with contextlib.suppress(ImportError):
            return _RuntimeDevice(importlib.import_module(name), index)
    try:
        import pycuda.driver
    except ImportError:
        raise missing_extra("cuda-python", "trt") from None
    try:
        pycuda.driver.init()
        context = pycuda.driver.Device(index).retain_primary_context()
    except Exception as error:  # pycuda.driver.Error, and RuntimeError for a number that is too large
        raise BackendError(f"PyCUDA cannot open GPU {index}: {first_line(error)}; check with: nvidia-smi") from error
    return _PyCudaDevice(pycuda.driver, context, index)


def stream_handle(stream: Any) -> int:
    """The cudaStream_t of another library's stream object, or of a handle itself.

    Raises:
        BackendError: it is none of the known kinds.
    """
    if isinstance(stream, Stream):
        return stream.handle
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):  # the protocol of cuda.core: (version, handle)
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, PyCUDA
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise BackendError(f"stream is a {type(stream).__name__}; expected a handle, or a stream of torch, CuPy or PyCUDA")


class _RuntimeDevice(CudaDevice):
    """Over cuda-python's bindings of the CUDA runtime, whose functions return (error, values...)."""

    captures_graphs = True

    def __init__(self, runtime: Any, index: int) -> None:
        self._runtime = runtime
        self._index = index
        version = self._call("cudaDriverGetVersion")
        if not version:
            raise BackendError("no NVIDIA driver is loaded; install one and check it with nvidia-smi, or use device 'cpu'")
        self.driver = _version(version)
        count = self._call("cudaGetDeviceCount")
        if index >= count:
            raise BackendError(f"there is no GPU {index}: {count} found; choose with device 'cuda:N', N from 0")
        properties = self._call("cudaGetDeviceProperties", index)
        name = properties.name
        self.name = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")
        self.compute_capability = (int(properties.major), int(properties.minor))

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        if int(error) != 0:
            raise self._error(int(error), error, function)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, code: int, error: Any, function: str) -> BackendError:
        if code == _DRIVER_TOO_OLD:
            return BackendError(
                "no NVIDIA driver is loaded, or it is older than this cuda-python; "
                "update the driver, or install the cuda-python of its CUDA version (nvidia-smi shows it)"
            )
        if code == _NO_DEVICE:
            return BackendError("the NVIDIA driver sees no GPU; check with nvidia-smi, or use device 'cpu'")
        text = self._runtime.cudaGetErrorString(error)[1]
        return BackendError(f"CUDA failed in {function}: {text.decode() if isinstance(text, bytes) else text} ({code})")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._call("cudaSetDevice", self._index)
        yield

    def allocate(self, nbytes: int) -> int:
        error, address = self._runtime.cudaMalloc(nbytes)
        if int(error) == _OUT_OF_MEMORY:
            self._runtime.cudaGetLastError()  # or the next kernel would report it again
            free, total = self._call("cudaMemGetInfo")
            raise out_of_memory(nbytes, free, total)
        if int(error) != 0:
            raise self._error(int(error), error, "cudaMalloc")
        return int(address)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        address = int(self._call("cudaHostAlloc", nbytes, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def create_stream(self) -> Stream:
        return Stream(int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)))

    def destroy_stream(self, stream: Stream) -> None:
        self._call("cudaStreamDestroy", stream.handle)

    def adopt_stream(self, stream: Any) -> Stream:
        return Stream(stream_handle(stream))

    def synchronize(self, stream: Stream) -> None:
        self._call("cudaStreamSynchronize", stream.handle)

    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream.handle)

    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream.handle)

    def record(self, stream: Stream) -> Any:
        event = self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)
        self._call("cudaEventRecord", event, stream.handle)
        return event

    def wait(self, stream: Stream, event: Any) -> None:
        self._call("cudaStreamWaitEvent", stream.handle, event, 0)

    def wait_on_host(self, event: Any) -> None:
        self._call("cudaEventSynchronize", event)

    def release_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    @contextlib.contextmanager
    def capture(self, stream: Stream) -> Iterator[list[Any]]:
        # Thread-local, or another thread's allocation would spoil the capture.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)
        captured: list[Any] = []
        try:
            yield captured
        except BaseException:
            with contextlib.suppress(BackendError):
                self._call("cudaStreamEndCapture", stream.handle)  # or the stream would stay in its capture
            raise
        template = self._call("cudaStreamEndCapture", stream.handle)
        try:
            captured.append(self._call("cudaGraphInstantiate", template, 0))
        finally:
            self._call("cudaGraphDestroy", template)

    def launch(self, graph: Any, stream: Stream) -> None:
        self._call("cudaGraphLaunch", graph, stream.handle)

    def release_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)


class _PyCudaDevice(CudaDevice):
    """Over PyCUDA and a context of its own making or the pipeline's; PyCUDA has no graphs."""

    captures_graphs = False

    def __init__(self, driver: Any, context: Any, index: int) -> None:
        self._driver = driver
        self._context = context
        self._allocations: dict[int, Any] = {}
        with self.active():
            device = driver.Context.get_device()
            if device != driver.Device(index):
                raise BackendError(f"the current PyCUDA context is not of GPU {index}; give its device, 'cuda:N'")
            self.name = device.name()
            major, minor = device.compute_capability()
        self.compute_capability = (major, minor)
        self.driver = _version(driver.get_driver_version())

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise BackendError(f"CUDA failed: {first_line(error)}") from error

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, nbytes: int) -> int:
        try:
            allocation = self._driver.mem_alloc(nbytes)
        except self._driver.MemoryError as error:
            raise out_of_memory(nbytes, *self._driver.mem_get_info()) from error
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        with self._reported():
            self._allocations.pop(address).free()

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        with self._reported():
            array: np.ndarray = self._driver.pagelocked_empty(nbytes, np.uint8)
            return array

    def free_pinned(self, array: np.ndarray) -> None:
        pass  # it goes with the last reference to the array

    def create_stream(self) -> Stream:
        with self._reported():
            native = self._driver.Stream()
        return Stream(native.handle, native)

    def destroy_stream(self, stream: Stream) -> None:
        pass  # it goes with its object

    def adopt_stream(self, stream: Any) -> Stream:
        if not isinstance(stream, self._driver.Stream):
            raise BackendError(f"stream is a {type(stream).__name__}; with a PyCUDA context give a pycuda.driver.Stream")
        return Stream(stream.handle, stream)

    def synchronize(self, stream: Stream) -> None:
        with self._reported():
            stream.native.synchronize()

    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        with self._reported():
            self._driver.memcpy_htod_async(address, source, stream.native)

    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        with self._reported():
            self._driver.memcpy_dtoh_async(target, address, stream.native)

    def record(self, stream: Stream) -> Any:
        if stream.native is None:
            raise BackendError("PyCUDA cannot wait for another library's stream; synchronise it before the call")
        with self._reported():
            return self._driver.Event(self._driver.event_flags.DISABLE_TIMING).record(stream.native)

    def wait(self, stream: Stream, event: Any) -> None:
        with self._reported():
            stream.native.wait_for_event(event)

    def wait_on_host(self, event: Any) -> None:
        with self._reported():
            event.synchronize()

    def release_event(self, event: Any) -> None:
        pass  # it goes with its object

    def capture(self, stream: Stream) -> AbstractContextManager[list[Any]]:
        raise BackendError("PyCUDA captures no CUDA graphs; set cuda_graphs=0, or install cuda-python")

    def launch(self, graph: Any, stream: Stream) -> None:
        raise AssertionError("no graph was captured")

    def release_graph(self, graph: Any) -> None:
        raise AssertionError("no graph was captured")


def out_of_memory(nbytes: int, free: int, total: int) -> BackendError:
    """The error for memory that the device does not have; all in bytes."""
    return BackendError(
        f"the GPU has {free // _MIB} of {total // _MIB} MiB free and {-(-nbytes // _MIB)} MiB were needed; "
        "use fewer contexts or cuda_graphs, a smaller batch or profile, or free memory (nvidia-smi shows who holds it)"
    )


def _current_context(driver: Any) -> Optional[Any]:
    try:
        return driver.Context.get_current()
    except driver.Error:  # CUDA is not initialised
        return None


def _version(number: int) -> str:
    """CUDA's 12040 as "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"
