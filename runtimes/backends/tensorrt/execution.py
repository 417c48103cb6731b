"""One execution of an engine at a time: a stream, memory that is reused, and CUDA graphs.

A captured graph is valid for one state of one context only ("Graphs captured with TensorRT are specific to the input size
for which they were captured, and also to the state of the execution context", TensorRT developer guide). So each graph has
its own context, which does not change as long as the graph lives. All contexts of a slot compute in the same memory, one
after another. Graphs use only memory of the slot: a caller's arrays have other addresses in every call.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda.memory import CudaDevice, Stream
from detr_export.runtimes.backends.tensorrt.api import Library
from detr_export.runtimes.errors import BackendError

_LOGGER = logging.getLogger("detr_export.tensorrt")
_AHEAD = 4  # runs with inputs from the host that a slot queues before it waits for the first of them
_SEEN_KEPT = 64  # how many works that ran once are remembered; a work that comes again becomes a graph
# A graph gives way to another only after so many runs without it. It is more than _SEEN_KEPT, so works that come in turns
# never drive each other out: either a work comes back before its graph is stale, or it is forgotten and not captured.
_STALE = 256

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # shapes of the inputs, in the engine's order
Addresses = tuple[tuple[str, int], ...]  # addresses of all tensors


@dataclass(frozen=True)
class Work:
    """A computation. Equal works can share a CUDA graph."""

    profile: int
    shapes: Shapes


@dataclass(frozen=True)
class _Scratch:
    """Device memory for the activations of one run at a time."""

    address: int = 0
    nbytes: int = 0


class _Context:
    """An execution context that remembers its state, so that it sets only what has changed."""

    def __init__(self, library: Library, context: Any) -> None:
        self._library = library
        self._context = context
        self._profile: Optional[int] = None
        self._shapes: Optional[Shapes] = None
        self._scratch: Optional[_Scratch] = None
        self._addresses: Optional[Addresses] = None

    def set_shapes(self, work: Work, stream: Stream) -> None:
        context = self._context
        if work.profile != self._profile:
            self._profile = self._shapes = None
            refused = f"does not take profile {work.profile}"
            try:
                self._require(context.set_optimization_profile_async(work.profile, stream.handle), refused)
            except RuntimeError as error:  # the bindings raise it and never return False
                raise BackendError(f"the engine {refused}: {self._library.log.cause()}") from error
            self._profile = work.profile
        if work.shapes != self._shapes:
            self._shapes = None
            for name, shape in work.shapes:
                self._require(context.set_input_shape(name, shape), f"does not take {name} of shape {shape}")
            self._shapes = work.shapes

    def output_shapes(self, names: list[str]) -> dict[str, tuple[int, ...]]:
        context = self._context
        return {name: tuple(context.get_tensor_shape(name)) for name in names}

    def enqueue(self, work: Work, scratch: _Scratch, addresses: Addresses, stream: Stream) -> None:
        self.set_shapes(work, stream)
        context = self._context
        if scratch != self._scratch:
            self._library.generation.set_memory(context, scratch.address, scratch.nbytes)
            self._scratch = scratch
        if addresses != self._addresses:
            self._addresses = None
            for name, address in addresses:
                self._require(context.set_tensor_address(name, address), f"does not take the address of {name}")
            self._addresses = addresses
        self.enqueue_again(stream)

    def enqueue_again(self, stream: Stream) -> None:
        self._require(self._context.execute_async_v3(stream.handle), "failed")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"the engine {what}: {self._library.log.cause()}")


class _Staging:
    """Memory of a tensor: a block on the device, and pinned blocks of the same size on the host. All calls reuse them."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        self.nbytes = _block(nbytes)
        self.address = device.allocate(self.nbytes)
        self.pinned: list[np.ndarray] = []  # all of them
        self.free: list[np.ndarray] = []  # those that no copy uses
        self._device = device

    def take_pinned(self) -> np.ndarray:
        """uint8 (nbytes,), from or to which a copy can be queued."""
        if not self.free:
            self.pinned.append(self._device.allocate_pinned(self.nbytes))
            return self.pinned[-1]
        return self.free.pop()

    def close(self) -> None:
        self._device.free(self.address)
        for block in self.pinned:
            self._device.free_pinned(block)


@dataclass
class _Graph:
    graph: Any
    context: _Context
    used: int  # number of the run that launched it last


@dataclass(frozen=True)
class _Queued:
    """A run that was left in a caller's stream."""

    stream: Stream
    done: Any  # the event after it
    held: Any  # the arrays that it reads
    pinned: list[tuple[_Staging, np.ndarray]]


class ExecutionSlot:
    """What a run needs. One thread uses it at a time. All calls need the device to be active.

    Runs follow each other on the device, in whatever streams they are: `start` comes first, and `finish` or `leave_running`
    last. Only when the slot needs more memory than before, the host waits for the runs that were left in a caller's stream.

    Args:
        device: the GPU.
        library: of the engine.
        engine: the deserialised engine.
        runtime: the runtime that deserialised it. It is kept because the engine needs it.
        graphs: how many CUDA graphs are kept; 0 captures none. Each has an execution context.
    """

    def __init__(self, device: CudaDevice, library: Library, engine: Any, runtime: Any, graphs: int) -> None:
        self.stream = device.create_stream()
        self._device = device
        self._library = library
        self._engine = engine
        self._runtime = runtime
        self._limit = graphs
        self._scratch = _Scratch()
        self._staging: dict[str, _Staging] = {}
        self._pinned: list[tuple[_Staging, np.ndarray]] = []  # what the current run copies from
        self._queued: deque[_Queued] = deque()  # in the order in which the device does them
        self._graphs: OrderedDict[Work, _Graph] = OrderedDict()  # the one that was not used for longest comes first
        self._spare: list[_Context] = []  # contexts whose graph is gone
        self._seen: OrderedDict[Work, None] = OrderedDict()
        self._runs = 0
        self._plain: Optional[_Context] = None
        try:
            self._plain = self._new_context()
        except BaseException:
            self.close()
            raise

    def is_busy(self, stream: Optional[Stream]) -> bool:
        """Whether a run, in the caller's stream if there is one, would wait here for a run in another stream."""
        while self._queued and self._device.happened(self._queued[0].done):
            self._settle_oldest()
        return bool(self._queued) and self._queued[-1].stream != stream

    def start(self, stream: Stream) -> None:
        """Makes `stream` wait, on the device, for the runs that were left in other streams."""
        if self.is_busy(stream):
            self._device.wait(stream, self._queued[-1].done)

    def upload(self, name: str, array: np.ndarray, dtype: str, stream: Stream) -> int:
        """Converts an input to the engine's dtype, queues its copy to the device, and returns its address there."""
        nbytes = array.size * np.dtype(dtype).itemsize
        staging = self._reserve(name, nbytes)
        while not staging.free and len(staging.pinned) >= _AHEAD and self._queued:
            self._settle_oldest()  # its copies still read the pinned memory
        block = staging.take_pinned()
        self._pinned.append((staging, block))
        np.copyto(block[:nbytes].view(dtype).reshape(array.shape), array, casting="same_kind")
        self._device.upload(staging.address, block[:nbytes], stream)
        return staging.address

    def output_address(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """The address at which the slot keeps an output."""
        return self._reserve(name, math.prod(shape) * np.dtype(dtype).itemsize).address

    def download(self, outputs: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, np.ndarray]:
        """Ends a run in the slot's stream: waits for it, and copies the outputs, given by shape and dtype, to new arrays."""
        views = {}
        for name, (shape, dtype) in outputs.items():
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            staging = self._staging[name]
            block = staging.take_pinned()
            self._pinned.append((staging, block))
            self._device.download(block[:nbytes], staging.address, self.stream)
            views[name] = block[:nbytes].view(dtype).reshape(shape)
        self._device.synchronize(self.stream)
        results = {name: view.copy() for name, view in views.items()}
        self.finish()
        return results

    def output_shapes(self, work: Work, names: list[str], stream: Stream) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs for these shapes of the inputs."""
        plain = self._require_open()
        plain.set_shapes(work, stream)
        return plain.output_shapes(names)

    def execute(self, work: Work, addresses: Addresses, stream: Stream) -> None:
        """Queues the computation on any memory."""
        self._require_scratch(work.profile)
        self._require_open().enqueue(work, self._scratch, addresses, stream)

    def execute_staged(self, work: Work, addresses: Addresses) -> None:
        """Queues the computation on the slot's own memory, in its stream.

        A work is captured when it comes again, and runs as a graph from the third time on.
        """
        self._require_scratch(work.profile)
        self._runs += 1
        graph = self._graphs.get(work)
        if graph is not None:
            self._graphs.move_to_end(work)
            graph.used = self._runs
            self._device.launch(graph.graph, self.stream)
        elif work in self._seen and self._has_room():
            self._capture(work, addresses)
        else:
            self._seen[work] = None
            self._seen.move_to_end(work)
            if len(self._seen) > _SEEN_KEPT:
                self._seen.popitem(last=False)
            self._require_open().enqueue(work, self._scratch, addresses, self.stream)

    def finish(self) -> None:
        """Ends a run for which the host has waited."""
        self._recycle(self._pinned)
        self._pinned = []
        self._settle()  # all are done, because the run came after them

    def leave_running(self, stream: Stream, held: Any) -> None:
        """Ends a run that continues in the caller's stream. `held` stays alive until it is done."""
        self._queued.append(_Queued(stream, self._device.record(stream), held, self._pinned))
        self._pinned = []

    def close(self) -> None:
        """Frees everything. No run may use the slot."""
        self._settle()
        self._device.synchronize(self.stream)
        self._drop_graphs()
        # Contexts go before the engine, and the engine before its runtime
        self._spare.clear()
        self._plain = self._engine = self._runtime = None
        for staging in self._staging.values():
            staging.close()
        self._staging.clear()
        if self._scratch.address:
            self._device.free(self._scratch.address)
            self._scratch = _Scratch()
        self._device.destroy_stream(self.stream)

    def _settle(self) -> None:
        """Waits for the runs that were left in a caller's stream."""
        while self._queued:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        run = self._queued.popleft()
        if not self._device.happened(run.done):
            self._device.wait_on_host(run.done)
        self._device.release_event(run.done)
        self._recycle(run.pinned)

    @staticmethod
    def _recycle(pinned: list[tuple[_Staging, np.ndarray]]) -> None:
        for staging, block in pinned:
            staging.free.append(block)

    def _reserve(self, name: str, nbytes: int) -> _Staging:
        """The memory of a tensor, at least `nbytes`."""
        staging = self._staging.get(name)
        if staging is not None and nbytes > staging.nbytes:
            self._forget_addresses()
            self._staging.pop(name).close()
            staging = None
        if staging is None:
            staging = self._staging[name] = _Staging(self._device, nbytes)
        return staging

    def _require_scratch(self, profile: int) -> None:
        """Sees to memory for the activations of a profile. It grows when a larger profile is first used."""
        nbytes = self._library.generation.context_bytes(self._engine, profile)
        if nbytes > self._scratch.nbytes:
            self._forget_addresses()
            old, self._scratch = self._scratch, _Scratch()
            if old.address:
                self._device.free(old.address)
            self._scratch = _Scratch(self._device.allocate(nbytes), nbytes)

    def _forget_addresses(self) -> None:
        """Waits until nothing uses the slot's memory, and drops the graphs, which have its addresses."""
        self._settle()
        self._drop_graphs()

    def _has_room(self) -> bool:
        """Whether another graph may be kept; makes room if the oldest one is stale."""
        if self._limit and len(self._graphs) >= self._limit:
            oldest = next(iter(self._graphs))
            if self._runs - self._graphs[oldest].used > _STALE:
                self._drop_graph(oldest)
        return len(self._graphs) < self._limit

    def _capture(self, work: Work, addresses: Addresses) -> None:
        captured = self._spare.pop() if self._spare else self._new_context()
        # This gives the result, and does the work for a new shape that must not be captured.
        captured.enqueue(work, self._scratch, addresses, self.stream)
        try:
            with self._device.capture(self.stream) as graphs:
                captured.enqueue_again(self.stream)
        except BackendError as error:
            self._limit = 0
            _LOGGER.warning("no CUDA graph could be captured, so kernels are launched one by one: %s", error)
            self._device.synchronize(self.stream)  # its context is freed on return
            return
        self._graphs[work] = _Graph(graphs[0], captured, self._runs)

    def _drop_graph(self, work: Work) -> None:
        """Drops a graph, which does not run now: all that ran in this slot's stream have ended."""
        dropped = self._graphs.pop(work)
        self._device.release_graph(dropped.graph)
        self._spare.append(dropped.context)

    def _drop_graphs(self) -> None:
        for work in list(self._graphs):
            self._drop_graph(work)

    def _new_context(self) -> _Context:
        context = self._library.generation.create_context(self._engine)
        if context is None:
            cause = self._library.log.cause()
            raise BackendError(f"TensorRT gives no execution context: {cause}; use fewer contexts or cuda_graphs")
        return _Context(self._library, context)

    def _require_open(self) -> _Context:
        if self._plain is None:
            raise BackendError("the session is closed")
        return self._plain


class OutputPool:
    """Device memory for outputs that callers keep. It comes back when they drop the outputs.

    The sizes of blocks are powers of two, so that images of many sizes share a few blocks.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._free: dict[int, list[tuple[int, list[Any]]]] = {}
        self._lock = threading.RLock()  # an array may be collected, and come back, while its thread is in here
        self._closed = False

    def take(self, nbytes: int, stream: Stream) -> int:
        """The address of at least `nbytes` bytes, for work in `stream`, which waits for what still reads them."""
        with self._lock:
            blocks = self._free.get(_block(nbytes))
            address, events = blocks.pop(0) if blocks else (None, [])  # the one that was dropped first
        if address is None:
            return self._device.allocate(_block(nbytes))
        for event in events:
            self._device.wait(stream, event)
            self._device.release_event(event)
        return address

    def give_back(self, address: int, nbytes: int, events: list[Any]) -> None:
        """Takes memory back, and events after which nothing uses it any more."""
        with self._lock:
            if not self._closed:
                self._free.setdefault(_block(nbytes), []).append((address, events))
                return
        self._free_block(address, events)

    def close(self) -> None:
        """Frees the memory that is here. Memory that callers still hold is freed when they drop it."""
        with self._lock:
            self._closed = True
            blocks = [block for size in self._free.values() for block in size]
            self._free.clear()
        for address, events in blocks:
            self._free_block(address, events)

    def _free_block(self, address: int, events: list[Any]) -> None:
        for event in events:
            self._device.wait_on_host(event)
            self._device.release_event(event)
        self._device.free(address)


def _block(nbytes: int) -> int:
    return 1 << (max(nbytes, 1) - 1).bit_length()
