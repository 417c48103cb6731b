"""The process that one variant lives in: it opens the variant, and measures when it is told to.

A process of its own keeps variants apart: their thread pools, allocators and memory. Commands come in and replies go out
as pickles through the standard streams; whatever a library prints goes to the error stream. The process ignores Ctrl-C,
which is for its parent, and ends when its input ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from detr_export.benchmarks.speed.agreement import relative_detections
from detr_export.benchmarks.speed.targets import BACKENDS
from detr_export.runtimes.errors import DetrError, InputError, first_line

if TYPE_CHECKING:
    from detr_export.benchmarks.speed.device_stages import PageLockedMemory

_STATUS = "/proc/self/status"
_STAGED_RUNS = 20  # of a turn, at most


@dataclass(frozen=True)
class Open:
    """Open a model; answered with `Opened`."""

    backend: str  # of `targets.BACKENDS`
    source: str
    threads: int
    max_batch: int = 1  # the largest that will be prepared
    lean_input: bool = False  # as `Target`'s


@dataclass(frozen=True)
class Opened:
    """What the model says about itself."""

    load_s: float  # import of the backend's library and opening of the model
    version: str
    precision: str  # what it computes in: "fp32", "tf32", "fp16", "int8"
    own_size: tuple[int, int]  # (height, width) that its settings make of a picture of the usual size
    ranges: dict[str, tuple[int, int | None]]  # of "batch", "height" and "width"
    draws_masks: bool
    input: str = ""  # dtype of the images that it takes, and whether they lie in page-locked memory
    end_to_end: bool = False  # whether it takes images as they are, and gives detections in pixels
    checkpoint: str = ""  # SHA-256 of the weights that it was made from; empty where nothing says


@dataclass(frozen=True)
class Prepare:
    """Get ready for one size and batch size; answered with `Prepared`."""

    height: int
    width: int
    batches: tuple[tuple[np.ndarray, ...], ...]  # of RGB pictures (h, w, 3) uint8; turns take one batch after the other
    # Whether the size is that of the pictures, which each model resizes as it does. The outputs are detections then.
    of_pictures: bool = False


@dataclass(frozen=True)
class Prepared:
    """The outputs for all batches, one batch after the other, and how long the first run took."""

    first_inference_ms: float
    outputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class Measure:
    """Run and time every part, a number of times or for some seconds, at least once; answered with `Measured`."""

    warmup_runs: int
    runs: int | None
    seconds: float | None


@dataclass(frozen=True)
class Measured:
    """Milliseconds, one sample for each run."""

    preprocess_ms: tuple[float, ...]
    session_ms: tuple[float, ...]
    postprocess_ms: tuple[float, ...]
    end_to_end_ms: tuple[float, ...]
    stages_ms: tuple[tuple[float, ...], ...] = ()  # on a GPU, from further runs, in the order of `device_stages.STAGES`


@dataclass(frozen=True)
class Throughput:
    """Run the session from several threads at once for some seconds, each at least once; answered with images/s, a float."""

    callers: int
    seconds: float


@dataclass(frozen=True)
class Failure:
    """The answer to a command that failed; the process goes on."""

    message: str


@dataclass(frozen=True)
class Memory:
    """The memory of the process, sent with every answer."""

    peak_resident_bytes: int
    device_bytes: int | None


class Worker:
    """Holds the variant. `handle` answers one command."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._device = "cpu"
        self._prepared: Prepare | None = None
        self._locked: PageLockedMemory | None = None  # what the inputs lie in
        self._pictures: list[list[Image.Image]] = []
        self._inputs: list[dict[str, np.ndarray]] = []
        self._next = 0

    def handle(self, command: Any) -> Any:
        """Carries out a command and returns the answer; errors are raised."""
        if isinstance(command, Open):
            return self._open(command)
        if self._pipeline is None:
            raise InputError("nothing is open yet")
        if isinstance(command, Prepare):
            return self._prepare(command)
        if self._prepared is None:
            raise InputError("no size is prepared yet")
        if isinstance(command, Measure):
            return self._measure(command)
        if isinstance(command, Throughput):
            return self._throughput(command)
        raise InputError(f"{type(command).__name__} is no command")

    def memory(self) -> Memory:
        """Of this process."""
        return Memory(peak_resident_bytes(), device_memory_bytes() if self._device == "cuda" else None)

    def _open(self, command: Open) -> Opened:
        begin = time.perf_counter()
        from detr_export.benchmarks.speed.pipelines import open_pipeline  # with the backends' libraries, so it counts

        self._pipeline = open_pipeline(
            command.backend, command.source, command.threads, command.max_batch, command.lean_input
        )
        load_s = time.perf_counter() - begin
        self._device = BACKENDS[command.backend].device
        self._locked = _page_locked_memory() if command.lean_input else None
        metadata = self._pipeline.session.metadata
        return Opened(
            load_s,
            self._pipeline.version,
            self._pipeline.precision,
            self._pipeline.own_size(),
            dict(metadata.ranges) if metadata else {},
            any(spec.name in ("pred_masks", "masks") for spec in self._pipeline.session.outputs),
            self._describe_input(),
            self._pipeline.end_to_end,
            self._pipeline.checkpoint(),
        )

    def _describe_input(self) -> str:
        dtype = next(spec.dtype for spec in self._pipeline.session.inputs if spec.name in ("pixel_values", "image"))
        return f"{dtype}, page-locked" if self._locked else dtype

    def _prepare(self, command: Prepare) -> Prepared:
        from detr_export.runtimes.processing.image_processor import DetrImageProcessor

        self._prepared, self._next = None, 0
        if self._pipeline.end_to_end and not command.of_pictures:
            raise InputError("an end-to-end file takes pictures, and is measured with the size of those")
        self._pictures = [[Image.fromarray(array) for array in batch] for batch in command.batches]
        if command.of_pictures:
            size = (command.width, command.height)
            self._pictures = [[picture.resize(size) for picture in batch] for batch in self._pictures]
            self._inputs = [self._pipeline.preprocess(batch, None) for batch in self._pictures]
        else:
            # The session is fed the same arrays in every variant, whatever its own processor would make of the pictures.
            processor = DetrImageProcessor(size={"height": command.height, "width": command.width})
            self._inputs = [self._pipeline.inputs(processor, batch) for batch in self._pictures]
        if self._locked is not None:
            self._locked.free()  # what lay in it was of the size before
            self._inputs = [self._locked.copy(inputs) for inputs in self._inputs]
        # All batches that will be timed are compared.
        self._pipeline.start_workload()
        first_ms, first = timed(lambda: self._pipeline.session.run(self._inputs[0]))
        outputs = [first, *(self._pipeline.session.run(inputs) for inputs in self._inputs[1:])]
        self._prepared = command
        if command.of_pictures:
            sizes = [(command.height, command.width)] * len(self._pictures[0])
            outputs = [relative_detections(item, sizes) for item in outputs]
            first = outputs[0]
        return Prepared(first_ms, {name: np.concatenate([item[name] for item in outputs]) for name in first})

    def _measure(self, command: Measure) -> Measured:
        samples: list[tuple[float, float, float, float]] = []
        for _ in range(command.warmup_runs):
            self._end_to_end(self._pictures[self._next % len(self._pictures)])
        begin = time.perf_counter()
        while len(samples) < (command.runs or 1) or (
            command.seconds is not None and time.perf_counter() - begin < command.seconds
        ):
            samples.append(self._run_once(self._next % len(self._pictures)))
            self._next += 1
        staged = [self._pipeline.stages(inputs) for inputs in self._inputs[:1] * min(len(samples), _STAGED_RUNS)]
        preprocess, session, postprocess, whole = zip(*samples, strict=True)
        stages = tuple(item.astuple() for item in staged if item is not None)
        return Measured(preprocess, session, postprocess, whole, stages)

    def _run_once(self, index: int) -> tuple[float, float, float, float]:
        """Milliseconds of preprocess, session, postprocess and all in one go."""
        assert self._prepared is not None
        pictures, inputs = self._pictures[index], self._inputs[index]
        size = self._size()
        preprocess, _ = timed(lambda: self._pipeline.preprocess(pictures, size))
        session, outputs = timed(lambda: self._pipeline.session.run(inputs))
        postprocess, _ = timed(lambda: self._pipeline.postprocess(outputs, _sizes(pictures)))
        whole, _ = timed(lambda: self._end_to_end(pictures))
        return preprocess, session, postprocess, whole

    def _end_to_end(self, pictures: list[Image.Image]) -> Any:
        inputs = self._pipeline.preprocess(pictures, self._size())
        return self._pipeline.postprocess(self._pipeline.session.run(inputs), _sizes(pictures))

    def _size(self) -> tuple[int, int] | None:
        """(height, width) that pictures are resized to; None where the model's own settings decide."""
        assert self._prepared is not None
        return None if self._prepared.of_pictures else (self._prepared.height, self._prepared.width)

    def _throughput(self, command: Throughput) -> float:
        """Images per second of all callers together, until the last one is done."""
        start = threading.Barrier(command.callers + 1)
        finished: list[int] = []
        errors: list[Exception] = []

        def call(inputs: dict[str, np.ndarray]) -> None:
            start.wait()
            deadline, runs = time.perf_counter() + command.seconds, 0
            try:
                while runs == 0 or time.perf_counter() < deadline:
                    self._pipeline.session.run(inputs)
                    runs += 1
            except Exception as error:
                errors.append(error)
            finished.append(runs)

        # All callers and this thread start together; the time ends with the last caller.
        callers = [
            threading.Thread(target=call, args=(self._inputs[number % len(self._inputs)],))
            for number in range(command.callers)
        ]
        for caller in callers:
            caller.start()
        start.wait()
        begin = time.perf_counter()
        for caller in callers:
            caller.join()
        elapsed = time.perf_counter() - begin
        if errors:
            raise errors[0]
        return sum(finished) * len(self._pictures[0]) / elapsed


def _page_locked_memory() -> PageLockedMemory | None:
    """None where there is no library to get it with; the report says what the inputs lie in."""
    from detr_export.benchmarks.speed.device_stages import PageLockedMemory

    try:
        return PageLockedMemory()
    except DetrError:
        return None


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that a call took, and its result. Sessions return arrays on the host, so a device has finished then."""
    begin = time.perf_counter()
    result = call()
    return (time.perf_counter() - begin) * 1e3, result


def peak_resident_bytes() -> int:
    """The most memory that this process has held.

    On Linux this is not `ru_maxrss`, because a process inherits that from the process that started it.
    """
    try:
        with open(_STATUS, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_memory_bytes() -> int | None:
    """GPU memory that this process holds; None where the driver does not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or pynvml's own error
        return None
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        processes = [process for device in devices for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]
        return memory_of(os.getpid(), processes)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def memory_of(pid: int, processes: list[Any]) -> int | None:
    """Sum over the entries of a process; None when it has no entry, or the driver hides the amount."""
    amounts = [process.usedGpuMemory for process in processes if process.pid == pid]
    return None if not amounts or None in amounts else sum(amounts)


def _sizes(pictures: list[Image.Image]) -> list[tuple[int, int]]:
    return [(picture.height, picture.width) for picture in pictures]


def serve(commands: BinaryIO, replies: BinaryIO) -> None:
    """Answers commands until the input ends; with every answer goes the `Memory`."""
    worker = Worker()
    while True:
        try:
            command = pickle.load(commands)
        except EOFError:
            return
        reply: Any
        try:
            reply = worker.handle(command)
        except DetrError as error:
            reply = Failure(" ".join(str(error).split()))
        except Exception as error:  # a library's own; the other variants go on
            reply = Failure(f"{type(error).__name__}: {first_line(error)}")
        pickle.dump((reply, worker.memory()), replies)
        replies.flush()


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, replies)
