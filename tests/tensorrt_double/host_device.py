"""`CudaDevice` on host memory. Queued work runs when somebody waits for it, so what is read too early is wrong."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM, CudaDevice, Stream, out_of_memory, stream_handle
from detr_export.runtimes.errors import BackendError

Task = Callable[[], None]
_ALIGNMENT = 256  # of device memory
_LEGACY, _PER_THREAD = LEGACY_STREAM.handle, 2  # the default streams


@dataclass(eq=False)
class Event:
    """Happens when the stream gets there."""

    stream: int
    happened: bool = False


@dataclass
class Counts:
    """What was asked of the device."""

    allocations: int = 0
    pinned: int = 0
    captures: int = 0
    launches: int = 0
    host_waits: int = 0  # calls that stop the host until the device is there
    uploads: list[int] = field(default_factory=list)  # bytes of each


class HostDevice(CudaDevice):
    """A GPU made of host memory."""

    index = 0
    name = "Test GPU"
    compute_capability = (9, 0)
    driver = "13.0"
    captures_graphs = True

    def __init__(self, limit: int = 1 << 32, index: int = 0) -> None:
        self.index = index
        self.counts = Counts()
        self.blocks: dict[int, np.ndarray] = {}  # device memory by address
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Task]] = {}  # those that somebody made
        self.default_streams: dict[int, list[Task]] = {_LEGACY: [], _PER_THREAD: []}
        self.blocking = {_PER_THREAD}  # streams that the legacy default one synchronises with
        self.foreign: dict[int, int | None] = {}  # addresses on other GPUs, and which
        self.events: list[Event] = []
        self.graphs: list[list[Task]] = []
        self.refuses_capture = False
        self._limit = limit
        self.capturing: dict[int, list[Task]] = {}
        self._handles = itertools.count(1000, 8)
        self._lock = threading.RLock()
        self._active = threading.local()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._active.depth = getattr(self._active, "depth", 0) + 1
        try:
            yield
        finally:
            self._active.depth -= 1  # as the caller had it

    def _require_active(self) -> None:
        assert getattr(self._active, "depth", 0), "a CUDA call outside of active()"

    def allocate(self, nbytes: int) -> int:
        self._require_active()
        with self._lock:
            used = sum(block.nbytes for block in self.blocks.values())
            if used + nbytes > self._limit:
                raise out_of_memory(nbytes, self._limit - used, self._limit)
            self.counts.allocations += 1
            whole = np.full(max(nbytes, 1) + _ALIGNMENT, 0xEE, np.uint8)
            block = whole[-whole.ctypes.data % _ALIGNMENT :][: max(nbytes, 1)]
            self.blocks[block.ctypes.data] = block
            return block.ctypes.data

    def free(self, address: int) -> None:
        self._require_active()
        with self._lock:
            del self.blocks[address]

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        self._require_active()
        with self._lock:
            self.counts.pinned += 1
            block = np.full(nbytes, 0xDD, np.uint8)
            self.pinned[block.ctypes.data] = block
            return block

    def free_pinned(self, array: np.ndarray) -> None:
        with self._lock:
            del self.pinned[array.ctypes.data]

    def create_stream(self, blocking: bool = False) -> Stream:
        """A stream; PyCUDA's and CuPy's are blocking ones, and the project's are not."""
        self._require_active()
        with self._lock:
            stream = Stream(next(self._handles))
            self.streams[stream.handle] = []
            if blocking:
                self.blocking.add(stream.handle)
            return stream

    def destroy_stream(self, stream: Stream) -> None:
        self._require_active()
        with self._lock:
            assert not self.streams.pop(stream.handle), "a stream is destroyed with work in it"
            self.blocking.discard(stream.handle)

    def adopt_stream(self, stream: Any) -> Stream:
        return Stream(stream_handle(stream))

    def queue(self, handle: int) -> list[Task]:
        """The work in a stream."""
        if handle in (0, *self.default_streams):
            return self.default_streams[handle or _LEGACY]
        assert handle in self.streams, f"{handle} is no stream, or one that was destroyed"
        return self.streams[handle]

    def enqueue(self, handle: int, task: Task) -> None:
        """Queues work, or captures it. Work in the legacy default stream stands between the work of all blocking ones."""
        with self._lock:
            if handle in self.capturing:
                self.capturing[handle].append(task)
                return
            legacy = handle in (0, _LEGACY)
            if legacy:
                for other in self.blocking:
                    self.queue(_LEGACY).append(self._until(other))
            self.queue(handle).append(task)
            if legacy:
                for other in self.blocking:
                    self.queue(other).append(self._until(_LEGACY))

    def _until(self, handle: int) -> Task:
        """A task that waits for all that is in a stream now."""
        mark = Event(handle)
        self.queue(handle).append(lambda: setattr(mark, "happened", True))
        return lambda: self._reach(mark)

    def synchronize(self, stream: Stream) -> None:
        self._require_active()
        self.counts.host_waits += 1
        self._drain(stream.handle, lambda: False)

    def synchronize_all(self) -> None:
        self._require_active()
        self.counts.host_waits += 1
        for handle in (*self.streams, *self.default_streams):
            self._drain(handle, lambda: False)

    def gpu_of(self, address: int) -> int | None:
        return self.foreign.get(address, self.index)

    def _drain(self, handle: int, enough: Callable[[], bool]) -> None:
        with self._lock:
            assert handle not in self.capturing, "a wait during a capture"
            queue = self.queue(handle)
            while queue and not enough():
                queue.pop(0)()

    def memory(self, address: int, nbytes: int) -> np.ndarray:
        """uint8 (nbytes,) at an address, which has to be inside of a block."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + block.nbytes:
                return block[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are not device memory")

    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        self.counts.uploads.append(source.nbytes)
        assert source.ctypes.data in self.pinned, "an asynchronous copy from memory that is not pinned"

        def copy() -> None:
            assert source.ctypes.data in self.pinned, "pinned memory was freed before it was copied"
            np.copyto(self.memory(address, source.nbytes), source.view(np.uint8))

        self.enqueue(stream.handle, copy)

    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        data = target.reshape(-1).view(np.uint8)
        self.enqueue(stream.handle, lambda: np.copyto(data, self.memory(address, target.nbytes)))

    def record(self, stream: Stream) -> Event:
        event = Event(stream.handle)
        self.events.append(event)
        self.enqueue(stream.handle, lambda: setattr(event, "happened", True))
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        assert event in self.events, "an event that was released"
        self.enqueue(stream.handle, lambda: self._reach(event))

    def _reach(self, event: Event) -> None:
        if not event.happened:
            self._drain(event.stream, lambda: event.happened)
        assert event.happened

    def happened(self, event: Event) -> bool:
        assert event in self.events, "an event that was released"
        return event.happened

    def wait_on_host(self, event: Event) -> None:
        assert event in self.events, "an event that was released"
        self.counts.host_waits += 1
        self._reach(event)

    def release_event(self, event: Event) -> None:
        self.events.remove(event)

    @contextlib.contextmanager
    def capture(self, stream: Stream) -> Iterator[list[Any]]:
        if self.refuses_capture:
            raise BackendError("CUDA failed in cudaStreamBeginCapture: operation not permitted (900)")
        self.counts.captures += 1
        self.capturing[stream.handle] = []
        captured: list[Any] = []
        try:
            yield captured
        finally:
            tasks = self.capturing.pop(stream.handle)
        captured.append(tasks)
        self.graphs.append(tasks)

    def launch(self, graph: list[Task], stream: Stream) -> None:
        assert any(graph is known for known in self.graphs), "a graph that was released"
        self.counts.launches += 1
        for task in graph:
            self.enqueue(stream.handle, task)

    def release_graph(self, graph: list[Task]) -> None:
        self.graphs = [known for known in self.graphs if known is not graph]
