"""`CudaDevice` on host memory. Queued work runs when somebody waits for it, so what is read too early is wrong."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detr_export.runtimes.backends.cuda.memory import CudaDevice, Stream, out_of_memory, stream_handle
from detr_export.runtimes.errors import BackendError

Task = Callable[[], None]


@dataclass
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
    uploads: list[int] = field(default_factory=list)  # bytes of each


class HostDevice(CudaDevice):
    """A GPU made of host memory."""

    name = "Test GPU"
    compute_capability = (9, 0)
    driver = "13.0"
    captures_graphs = True

    def __init__(self, limit: int = 1 << 32) -> None:
        self.counts = Counts()
        self.blocks: dict[int, np.ndarray] = {}  # device memory by address
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Task]] = {}
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
            self._active.depth -= 1

    def _require_active(self) -> None:
        assert getattr(self._active, "depth", 0), "a CUDA call outside of active()"

    def allocate(self, nbytes: int) -> int:
        self._require_active()
        with self._lock:
            used = sum(block.nbytes for block in self.blocks.values())
            if used + nbytes > self._limit:
                raise out_of_memory(nbytes, self._limit - used, self._limit)
            self.counts.allocations += 1
            block = np.full(max(nbytes, 1), 0xEE, np.uint8)
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

    def create_stream(self) -> Stream:
        self._require_active()
        with self._lock:
            stream = Stream(next(self._handles))
            self.streams[stream.handle] = []
            return stream

    def destroy_stream(self, stream: Stream) -> None:
        with self._lock:
            assert not self.streams.pop(stream.handle), "a stream is destroyed with work in it"

    def adopt_stream(self, stream: Any) -> Stream:
        return Stream(stream_handle(stream))

    def enqueue(self, handle: int, task: Task) -> None:
        """Queues work, or captures it."""
        with self._lock:
            (self.capturing[handle] if handle in self.capturing else self.streams[handle]).append(task)

    def synchronize(self, stream: Stream) -> None:
        self._require_active()
        self._drain(stream.handle, lambda: False)

    def _drain(self, handle: int, enough: Callable[[], bool]) -> None:
        with self._lock:
            assert handle not in self.capturing, "a wait during a capture"
            queue = self.streams[handle]
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
        self.enqueue(stream.handle, lambda: np.copyto(self.memory(address, source.nbytes), source.view(np.uint8)))

    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        data = target.reshape(-1).view(np.uint8)
        self.enqueue(stream.handle, lambda: np.copyto(data, self.memory(address, target.nbytes)))

    def record(self, stream: Stream) -> Event:
        event = Event(stream.handle)
        self.events.append(event)
        self.enqueue(stream.handle, lambda: setattr(event, "happened", True))
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        self.enqueue(stream.handle, lambda: self._reach(event))

    def _reach(self, event: Event) -> None:
        if not event.happened:
            self._drain(event.stream, lambda: event.happened)
        assert event.happened

    def wait_on_host(self, event: Event) -> None:
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
