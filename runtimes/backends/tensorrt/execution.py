"""One execution of an engine at a time: a stream, memory that is reused, and CUDA graphs.

A captured graph is valid for one state of one context only ("Graphs captured with TensorRT are specific to the input size
for which they were captured, and also to the state of the execution context", TensorRT developer guide). So each graph has
its own context, which never changes again. All contexts of a slot compute in the same memory, one after another.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda.memory import CudaDevice, Stream
from detr_export.runtimes.backends.tensorrt.api import Library, Log
from detr_export.runtimes.errors import BackendError

_LOGGER = logging.getLogger("detr_export.tensorrt")
_SEEN_KEPT = 64  # how many works that ran once are remembered; a work that comes again becomes a graph

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # shapes of the inputs, in the engine's order
Addresses = tuple[tuple[str, int], ...]  # addresses of all tensors


@dataclass(frozen=True)
class Work:
    """A computation. Equal works can share a CUDA graph."""

    profile: int
    shapes: Shapes
    addresses: Addresses


class _Context:
    """An execution context that remembers its state, so that it sets only what has changed."""

    def __init__(self, context: Any, log: Log) -> None:
        self._context = context
        self._log = log
        self._profile: Optional[int] = None
        self._shapes: Optional[Shapes] = None
        self._addresses: Optional[Addresses] = None

    def set_shapes(self, profile: int, shapes: Shapes, stream: Stream) -> None:
        context = self._context
        if profile != self._profile:
            self._profile = self._shapes = None
            self._require(context.set_optimization_profile_async(profile, stream.handle), f"does not take profile {profile}")
            self._profile = profile
        if shapes != self._shapes:
            self._shapes = None
            for name, shape in shapes:
                self._require(context.set_input_shape(name, shape), f"does not take {name} of shape {shape}")
            self._shapes = shapes

    def output_shapes(self, names: list[str]) -> dict[str, tuple[int, ...]]:
        context = self._context
        return {name: tuple(context.get_tensor_shape(name)) for name in names}

    def enqueue(self, work: Work, stream: Stream) -> None:
        self.set_shapes(work.profile, work.shapes, stream)
        context = self._context
        if work.addresses != self._addresses:
            self._addresses = None
            for name, address in work.addresses:
                self._require(context.set_tensor_address(name, address), f"does not take the address of {name}")
            self._addresses = work.addresses
        self.enqueue_again(stream)

    def enqueue_again(self, stream: Stream) -> None:
        self._require(self._context.execute_async_v3(stream.handle), "failed")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"the engine {what}: {self._log.cause()}")


class _Staging:
    """Memory of a tensor on the device, and pinned memory on the host. It grows when needed, and is reused by all calls."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._address: Optional[int] = None
        self._pinned: Optional[np.ndarray] = None
        self._nbytes = 0

    def reserve(self, nbytes: int) -> tuple[int, np.ndarray]:
        """The address on the device, and uint8 (nbytes,) in pinned memory."""
        if nbytes > self._nbytes or self._address is None or self._pinned is None:
            self.free()
            self._address = self._device.allocate(nbytes)
            self._pinned = self._device.allocate_pinned(nbytes)
            self._nbytes = nbytes
        return self._address, self._pinned[:nbytes]

    def free(self) -> None:
        address, pinned = self._address, self._pinned
        self._address, self._pinned, self._nbytes = None, None, 0
        if address is not None:
            self._device.free(address)
        if pinned is not None:
            self._device.free_pinned(pinned)


class ExecutionSlot:
    """What a run needs. One thread uses it at a time. All calls need the device to be active.

    Args:
        device: the GPU.
        library: of the engine.
        engine: the deserialised engine.
        runtime: the runtime that deserialised it. It is kept because the engine needs it.
        graphs: how many CUDA graphs are kept. The one that was not used for longest goes first; 0 captures none.
    """

    def __init__(self, device: CudaDevice, library: Library, engine: Any, runtime: Any, graphs: int) -> None:
        self.stream = device.create_stream()
        self._device = device
        self._library = library
        self._engine = engine
        self._runtime = runtime
        self._limit = graphs
        self._memory = 0
        self._staging: dict[str, _Staging] = {}
        self._graphs: OrderedDict[Work, tuple[_Context, Any]] = OrderedDict()
        self._seen: OrderedDict[Work, None] = OrderedDict()
        self._pending: Optional[Any] = None  # the event after which the caller's stream is done with this slot
        self._held: Any = None  # the arrays that this stream still reads
        try:
            self._memory_bytes = library.generation.context_bytes(engine)
            if self._memory_bytes:
                self._memory = device.allocate(self._memory_bytes)
            self._plain: Optional[_Context] = self._new_context()
        except BaseException:
            self.close()
            raise

    def upload(self, name: str, array: np.ndarray, dtype: str, stream: Stream) -> int:
        """Converts an input to the engine's dtype, queues its copy to the device, and returns its address there."""
        self.settle()  # an earlier copy may still read the pinned memory
        nbytes = array.size * np.dtype(dtype).itemsize
        address, pinned = self._reserve(name, nbytes)
        np.copyto(pinned.view(dtype).reshape(array.shape), array, casting="same_kind")
        self._device.upload(address, pinned, stream)
        return address

    def output_address(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """The address at which the slot keeps an output."""
        return self._reserve(name, math.prod(shape) * np.dtype(dtype).itemsize)[0]

    def download(self, outputs: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, np.ndarray]:
        """Waits for the slot's stream and copies the outputs to new arrays. `outputs` has their shapes and dtypes."""
        views = {}
        for name, (shape, dtype) in outputs.items():
            address, pinned = self._reserve(name, math.prod(shape) * np.dtype(dtype).itemsize)
            self._device.download(pinned, address, self.stream)
            views[name] = pinned.view(dtype).reshape(shape)
        self._device.synchronize(self.stream)
        return {name: view.copy() for name, view in views.items()}

    def output_shapes(self, profile: int, shapes: Shapes, names: list[str], stream: Stream) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs for these shapes of the inputs."""
        plain = self._require_open()
        plain.set_shapes(profile, shapes, stream)
        return plain.output_shapes(names)

    def execute(self, work: Work, stream: Stream) -> None:
        """Queues the computation. A work is captured when it comes again, and runs as a graph from the third time on."""
        captured = self._graphs.get(work)
        if captured is not None:
            self._graphs.move_to_end(work)
            self._device.launch(captured[1], stream)
        elif work in self._seen and self._limit:
            self._capture(work, stream)
        else:
            self._seen[work] = None
            if len(self._seen) > _SEEN_KEPT:
                self._seen.popitem(last=False)
            self._require_open().enqueue(work, stream)

    def start(self, stream: Stream) -> None:
        """Makes `stream` wait for the work of another stream in this slot."""
        if self._pending is not None:
            self._device.wait(stream, self._pending)

    def leave_running(self, stream: Stream, held: Any) -> None:
        """Lets the work continue in the caller's stream. `held` stays alive until it is done."""
        self.settle()
        self._pending, self._held = self._device.record(stream), held

    def settle(self) -> None:
        """Waits for the work that was left running."""
        if self._pending is not None:
            event, self._pending = self._pending, None
            self._device.wait_on_host(event)
            self._device.release_event(event)
            self._held = None

    def close(self) -> None:
        """Frees everything. No run may use the slot."""
        self.settle()
        while self._graphs:
            self._drop_oldest()
        self._plain = self._engine = self._runtime = None  # contexts go before the engine, and the engine before its runtime
        for staging in self._staging.values():
            staging.free()
        self._staging.clear()
        if self._memory:
            self._device.free(self._memory)
            self._memory = 0
        self._device.destroy_stream(self.stream)

    def _capture(self, work: Work, stream: Stream) -> None:
        captured = self._new_context()
        captured.enqueue(work, stream)  # this gives the result, and does the work for a new shape that must not be captured
        try:
            with self._device.capture(self.stream) as graphs:
                captured.enqueue_again(self.stream)
        except BackendError as error:
            self._limit = 0
            _LOGGER.warning("no CUDA graph could be captured, so kernels are launched one by one: %s", error)
            self._device.synchronize(stream)  # its context is freed on return
            return
        if len(self._graphs) == self._limit:
            self._device.synchronize(stream)
            self._drop_oldest()
        self._graphs[work] = (captured, graphs[0])

    def _drop_oldest(self) -> None:
        _, (_, graph) = self._graphs.popitem(last=False)
        self._device.release_graph(graph)

    def _new_context(self) -> _Context:
        context = self._library.generation.create_context(self._engine, self._memory, self._memory_bytes)
        if context is None:
            cause = self._library.log.cause()
            raise BackendError(f"TensorRT gives no execution context: {cause}; use fewer contexts or cuda_graphs")
        return _Context(context, self._library.log)

    def _reserve(self, name: str, nbytes: int) -> tuple[int, np.ndarray]:
        return self._staging.setdefault(name, _Staging(self._device)).reserve(nbytes)

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
        self._free: dict[int, list[tuple[int, Any]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def take(self, nbytes: int, stream: Stream) -> int:
        """The address of at least `nbytes` bytes, for work in `stream`."""
        with self._lock:
            blocks = self._free.get(_block(nbytes))
            address, event = blocks.pop() if blocks else (None, None)
        if address is None:
            return self._device.allocate(_block(nbytes))
        if event is not None:
            self._device.wait(stream, event)
            self._device.release_event(event)
        return address

    def give_back(self, address: int, nbytes: int, stream: Optional[Stream]) -> None:
        """Takes memory back. Work in `stream` may still read it; None means that nothing does."""
        with self._device.active():
            event = None if stream is None else self._device.record(stream)
            with self._lock:
                if not self._closed:
                    self._free.setdefault(_block(nbytes), []).append((address, event))
                    return
            self._device.free(address)

    def close(self) -> None:
        """Frees the memory that is here. Memory that callers still hold is freed when they drop it."""
        with self._lock:
            self._closed = True
            blocks = [block for size in self._free.values() for block in size]
            self._free.clear()
        for address, event in blocks:
            if event is not None:
                self._device.wait_on_host(event)
                self._device.release_event(event)
            self._device.free(address)


def _block(nbytes: int) -> int:
    return 1 << (max(nbytes, 1) - 1).bit_length()
