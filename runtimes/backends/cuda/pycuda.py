"""A GPU by way of PyCUDA, on the context that a PyCUDA pipeline has made current, or on the primary one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM, CudaDevice, Stream, out_of_memory, version_text
from detr_export.runtimes.errors import BackendError, first_line


class PyCudaDevice(CudaDevice):
    """One GPU. PyCUDA has no CUDA graphs.

    Args:
        driver: the module `pycuda.driver`.
        context: the CUDA context, the pipeline's or a new one.
        index: number of the GPU.

    Raises:
        BackendError: the context is another GPU's.
    """

    captures_graphs = False

    def __init__(self, driver: Any, context: Any, index: int) -> None:
        self._driver = driver
        self._context = context
        self._allocations: dict[int, Any] = {}
        self.index = index
        with self.active():
            device = driver.Context.get_device()
            if device != driver.Device(index):
                raise BackendError(f"the current PyCUDA context is not of GPU {index}; give its device, 'cuda:N'")
            self.name = device.name()
            major, minor = device.compute_capability()
        self.compute_capability = (major, minor)
        self.driver = version_text(driver.get_driver_version())

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
        pass  # PyCUDA frees it with the last reference to the array

    def create_stream(self) -> Stream:
        with self._reported():
            native = self._driver.Stream()
        return Stream(native.handle, native)

    def destroy_stream(self, stream: Stream) -> None:
        pass  # PyCUDA frees it with its object

    def adopt_stream(self, stream: Any) -> Stream:
        if not isinstance(stream, self._driver.Stream):
            raise BackendError(f"stream is a {type(stream).__name__}; with a PyCUDA context, pass a pycuda.driver.Stream")
        return Stream(stream.handle, stream)

    def synchronize(self, stream: Stream) -> None:
        with self._reported():
            stream.native.synchronize()

    def synchronize_all(self) -> None:
        with self._reported():
            self._driver.Context.synchronize()

    def gpu_of(self, address: int) -> Optional[int]:
        return None  # PyCUDA cannot tell

    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        with self._reported():
            self._driver.memcpy_htod_async(address, source, stream.native)

    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        with self._reported():
            self._driver.memcpy_dtoh_async(target, address, stream.native)

    def record(self, stream: Stream) -> Any:
        if stream.native is None and stream != LEGACY_STREAM:
            raise BackendError("PyCUDA cannot wait for another library's stream; synchronise it before the call")
        with self._reported():  # without a stream, PyCUDA takes the default one
            return self._driver.Event(self._driver.event_flags.DISABLE_TIMING).record(stream.native)

    def wait(self, stream: Stream, event: Any) -> None:
        with self._reported():
            if stream.native is None:  # PyCUDA cannot queue anything in another library's stream
                event.synchronize()
            else:
                stream.native.wait_for_event(event)

    def happened(self, event: Any) -> bool:
        with self._reported():
            return bool(event.query())

    def wait_on_host(self, event: Any) -> None:
        with self._reported():
            event.synchronize()

    def release_event(self, event: Any) -> None:
        pass  # PyCUDA frees it with its object

    def capture(self, stream: Stream) -> AbstractContextManager[list[Any]]:
        raise BackendError("PyCUDA captures no CUDA graphs; set cuda_graphs=0, or install cuda-python")

    def launch(self, graph: Any, stream: Stream) -> None:
        raise AssertionError("no graph was captured")

    def release_graph(self, graph: Any) -> None:
        raise AssertionError("no graph was captured")


def current_context(driver: Any) -> Optional[Any]:
    """The context that is current in this thread, or None."""
    try:
        return driver.Context.get_current()
    except driver.Error:  # CUDA is not initialised yet
        return None
