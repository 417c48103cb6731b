"""A GPU by way of cuda-python: the bindings of the CUDA runtime, on the device's primary context."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda.memory import CudaDevice, Stream, out_of_memory, stream_handle, version_text
from detr_export.runtimes.errors import BackendError

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_DRIVER_TOO_OLD = 35  # cudaErrorInsufficientDriver, which CUDA also gives when there is no driver
_NO_DEVICE = 100  # cudaErrorNoDevice
_NOT_READY = 600  # cudaErrorNotReady
_DEVICE_MEMORY = 2  # cudaMemoryTypeDevice


class CudaPythonDevice(CudaDevice):
    """One GPU. The functions of the bindings return (error, values...).

    Args:
        runtime: the module with the bindings of the CUDA runtime.
        driver: the module with those of the CUDA driver.
        index: number of the GPU.

    Raises:
        BackendError: there is no driver or no such GPU.
    """

    captures_graphs = True

    def __init__(self, runtime: Any, driver: Any, index: int) -> None:
        self._runtime = runtime
        self._driver = driver
        self.index = index
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
        self._call_driver("cuInit", 0)
        self._context = self._call_driver("cuDevicePrimaryCtxRetain", self._call_driver("cuDeviceGet", index))

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
        return _failure(function, self._runtime.cudaGetErrorString(error)[1], code)

    def _call_driver(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, function)(*arguments)
        if int(error) != 0:
            raise _failure(function, self._driver.cuGetErrorString(error)[1], int(error))
        return values[0] if values else None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        # Not with cudaSetDevice: to set the caller's device again would make a context there, if there was none before,
        # and would lose a context that is not the primary one.
        self._call_driver("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call_driver("cuCtxPopCurrent")

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

    def synchronize_all(self) -> None:
        self._call("cudaDeviceSynchronize")

    def gpu_of(self, address: int) -> Optional[int]:
        attributes = self._call("cudaPointerGetAttributes", address)
        return int(attributes.device) if int(attributes.type) == _DEVICE_MEMORY else None

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

    def happened(self, event: Any) -> bool:
        error = self._runtime.cudaEventQuery(event)[0]
        if int(error) not in (0, _NOT_READY):
            raise self._error(int(error), error, "cudaEventQuery")
        return int(error) == 0

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


def _failure(function: str, text: Any, code: int) -> BackendError:
    return BackendError(f"CUDA failed in {function}: {text.decode() if isinstance(text, bytes) else text} ({code})")
