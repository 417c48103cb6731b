"""A GPU by way of cuda-python: the bindings of the CUDA runtime, on the device's primary context."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from detr_export.runtimes.backends.cuda.memory import CudaDevice, Stream, out_of_memory, stream_handle, version_text
from detr_export.runtimes.errors import BackendError

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_DRIVER_TOO_OLD = 35  # cudaErrorInsufficientDriver, which CUDA also gives when there is no driver
_NO_DEVICE = 100  # cudaErrorNoDevice


class CudaPythonDevice(CudaDevice):
    """One GPU. The functions of the bindings return (error, values...).

    Args:
        runtime: the module with the bindings.
        index: number of the GPU.

    Raises:
        BackendError: there is no driver or no such GPU.
    """

    captures_graphs = True

    def __init__(self, runtime: Any, index: int) -> None:
        self._runtime = runtime
        self._index = index
        version = self._call("cudaDriverGetVersion")
        if not version:
            raise BackendError("no NVIDIA driver is loaded; install one and check it with nvidia-smi, or use device 'cpu'")
        self.driver = version_text(version)
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
            self._runtime.cudaGetLastError()  # otherwise the next kernel would report it again
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
        # Thread-local, because otherwise an allocation in another thread would spoil the capture.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)
        captured: list[Any] = []
        try:
            yield captured
        except BaseException:
            with contextlib.suppress(BackendError):
                self._call("cudaStreamEndCapture", stream.handle)  # otherwise the stream would stay in its capture
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
