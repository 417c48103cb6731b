"""Runs the variants against each other: one process each, one of them at work at a time, in rounds A B C, A B C, ...

Before anything is timed at a size, all variants give their outputs for the same inputs; one whose outputs differ from the
first one's by more than rounding explains is wrong, and is not timed. A variant that fails is left out, the others go on.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np

from detr_export.benchmarks.speed.gpu_state import read_gpu_state
from detr_export.benchmarks.speed.statistics import Turn, schedule
from detr_export.benchmarks.speed.targets import BACKENDS, Target, require_runnable
from detr_export.benchmarks.speed.worker import (
    Failure,
    Measure,
    Measured,
    Memory,
    Open,
    Opened,
    Prepare,
    Prepared,
    Throughput,
)
from detr_export.runtimes.errors import BackendError, DetrError, InputError, first_line, missing_extra

try:
    import psutil
except ImportError as error:
    raise missing_extra("psutil", "bench") from error

_START = "from detr_export.benchmarks.speed.worker import main; main()"
_IDLE_POLL_S = 0.025  # more than the 10 ms in which Linux counts a process's time
_IDLE_LIMIT_S = 2.0
_GOODBYE_S = 2.0

Progress = Callable[[int, str, int], None]  # steps done, what is going on, steps in all


class WorkerDiedError(BackendError):
    """The process of a variant ended before it answered."""


class Process(Protocol):
    """What `Runner` needs of a variant's process."""

    memory: Memory | None

    def request(self, command: Any) -> Any:
        """Sends a command and waits for its answer; BackendError when it fails."""

    def wait_until_idle(self) -> None:
        """Returns when the process no longer computes."""

    def close(self) -> None:
        """Ends the process."""


class WorkerProcess:
    """A process that serves `detr_export.benchmarks.speed.worker`.

    Args:
        threads: for the libraries that take it from the environment.
    """

    def __init__(self, threads: int) -> None:
        self.memory: Memory | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="detr-bench-")
        self._errors = open(os.path.join(self._scratch.name, "stderr"), "w+b")  # noqa: SIM115  # closed with the process
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONSAFEPATH": "1",  # a folder that happens to be called torch is not to be imported
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": self._scratch.name,  # empty: a cold start is to be cold
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal does not reach it, also while it still starts
        )
        self._usage = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def request(self, command: Any) -> Any:
        """Sends a command and waits for its answer.

        Raises:
            WorkerDiedError: the process has ended; says how.
            BackendError: the command failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(command, self._process.stdin)
            self._process.stdin.flush()
            reply, self.memory = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise WorkerDiedError(self._how_it_ended()) from error
        if isinstance(reply, Failure):
            raise BackendError(reply.message)
        return reply

    def wait_until_idle(self) -> None:
        """Waits until the process has used no time for a moment.

        Idle threads of ONNX Runtime and OpenMP wait busily after a run, about 30 ms where this was measured, and would
        take a core from whatever runs next.
        """
        deadline = time.perf_counter() + _IDLE_LIMIT_S
        with contextlib.suppress(psutil.Error):
            used = _cpu_time_s(self._usage)
            while time.perf_counter() < deadline:
                time.sleep(_IDLE_POLL_S)
                before, used = used, _cpu_time_s(self._usage)
                if used == before:
                    return

    def close(self) -> None:
        """Asks the process to end, and ends it when it is busy with something that is no longer wanted."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        with contextlib.suppress(OSError):
            self._scratch.cleanup()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            return "its process no longer answers"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return how_a_process_ended(code, lines[-1] if lines else "")


def how_a_process_ended(code: int, last_line: str) -> str:
    """A line about an exit code, negative for a signal, and what the process said last."""
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = "; was there enough memory?" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}" + (f": {last_line:.200}" if last_line else "")


def _cpu_time_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Case:
    """One size and batch size, and the pictures for it."""

    height: int
    width: int
    batch: int
    batches: tuple[tuple[np.ndarray, ...], ...]  # each of `batch` RGB pictures (h, w, 3) uint8

    def __str__(self) -> str:
        return f"{self.height}x{self.width}" + (f", batch {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Pace:
    """How much is run."""

    rounds: int
    warmup_runs: int  # before each turn
    runs: int | None  # of a turn; or
    seconds: float | None  # of a turn, at least one run
    callers: int  # throughput is measured with 1 to that many; 0 leaves it out
    throughput_seconds: float


@dataclass
class Contestant:
    """A target with its process, and what is known of it so far."""

    target: Target
    process: Process | None = None
    opened: Opened | None = None
    first_inference_ms: float | None = None
    error: str | None = None


@dataclass
class Raw:
    """What one contestant gave in one case."""

    name: str
    case: Case
    correct: bool | None = None
    largest_difference: dict[str, float | None] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    images_per_second: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class Runner:
    """Opens the targets and measures them; a context manager that ends their processes.

    Args:
        targets: with names that differ.
        threads: of one run.
        tolerance: of a precision, by output name, the largest difference from the first variant; of two, the wider counts.
        calibrate: how long the calibration kernel takes now, in milliseconds.
        start: makes the process of a target.

    Attributes:
        contestants: in the order of the targets.
        results: what was measured so far, which an interruption leaves as it is.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        threads: int,
        tolerance: Callable[[str], Mapping[str, float]],
        calibrate: Callable[[], float],
        start: Callable[[int], Process] = WorkerProcess,
    ) -> None:
        self.contestants = [Contestant(target) for target in targets]
        self.results: list[Raw] = []
        self._threads, self._tolerance, self._calibrate, self._start = threads, tolerance, calibrate, start

    def open(self, step: Callable[[str], None]) -> None:
        """Opens all of them; `step` is called before each one with what is going on."""
        for contestant in self.contestants:
            step(f"opening {contestant.target.name}")
            with self._noting(contestant):
                require_runnable(contestant.target)
                contestant.process = self._start(self._threads)
                target = contestant.target
                contestant.opened = self._ask(contestant, Open(target.backend, target.source, self._threads))
            if contestant.opened is None:
                self._end(contestant)

    @property
    def able(self) -> list[Contestant]:
        """Those that are open and have not failed for good."""
        return [contestant for contestant in self.contestants if contestant.opened and contestant.error is None]

    def measure(self, case: Case, pace: Pace, step: Callable[[str], None]) -> None:
        """Compares the outputs at one size, and times those that are right.

        Args:
            case: the size and its pictures.
            pace: how much to run.
            step: called with what is going on before each of `steps_of_a_case` steps a contestant.
        """
        raws = {contestant.target.name: Raw(contestant.target.name, case) for contestant in self.able}
        self.results += raws.values()
        self._compare(case, raws, step)
        ready = [item for item in self.able if raws[item.target.name].correct]
        self._time(ready, raws, pace, step)
        for contestant in ready:
            raw = raws[contestant.target.name]
            for callers in range(1, pace.callers + 1):
                if raw.error is not None:
                    break
                step(f"{case}: {raw.name} with {callers} caller{'s' * (callers > 1)}")
                with self._noting(contestant, raw):
                    command = Throughput(callers, pace.throughput_seconds)
                    raw.images_per_second[str(callers)] = float(self._ask(contestant, command))

    def _compare(self, case: Case, raws: Mapping[str, Raw], step: Callable[[str], None]) -> None:
        reference: dict[str, np.ndarray] | None = None
        first = "fp32"
        for contestant in self.able:
            raw = raws[contestant.target.name]
            step(f"{case}: first run of {raw.name}")
            with self._noting(contestant, raw):
                opened = cast(Opened, contestant.opened)
                require_in_range(case, opened.ranges)
                prepared: Prepared = self._ask(contestant, Prepare(case.height, case.width, case.batches))
                if contestant.first_inference_ms is None:
                    contestant.first_inference_ms = prepared.first_inference_ms
                if reference is None:
                    reference, first = prepared.outputs, opened.precision
                raw.largest_difference = largest_differences(prepared.outputs, reference)
                own, theirs = self._tolerance(opened.precision), self._tolerance(first)
                raw.tolerance = {name: max(own[name], theirs[name]) for name in raw.largest_difference}
                raw.correct = within(raw.largest_difference, raw.tolerance)

    def _time(self, ready: Sequence[Contestant], raws: Mapping[str, Raw], pace: Pace, step: Callable[[str], None]) -> None:
        by_name = {contestant.target.name: contestant for contestant in ready}
        command = Measure(pace.warmup_runs, pace.runs, pace.seconds)
        before_ms = self._calibrate() if ready else 0.0
        for number, name in schedule(list(by_name), pace.rounds):
            raw = raws[name]
            if raw.error is not None:
                continue
            step(f"{raw.case}: round {number + 1} of {pace.rounds}, {name}")
            with self._noting(by_name[name], raw):
                measured: Measured = self._ask(by_name[name], command, rest=False)
                gpu = read_gpu_state() if BACKENDS[by_name[name].target.backend].device == "cuda" else None
                self._rest(by_name[name])
                after_ms = self._calibrate()
                raw.turns.append(
                    Turn(
                        number,
                        before_ms,
                        after_ms,
                        measured.preprocess_ms,
                        measured.session_ms,
                        measured.postprocess_ms,
                        measured.end_to_end_ms,
                        gpu=gpu,
                        stages_ms=measured.stages_ms,
                    )
                )
                before_ms = after_ms

    def _ask(self, contestant: Contestant, command: Any, rest: bool = True) -> Any:
        """The answer, as a rule once the process has come to rest."""
        assert contestant.process is not None
        reply = contestant.process.request(command)
        if rest:
            self._rest(contestant)
        return reply

    def _rest(self, contestant: Contestant) -> None:
        assert contestant.process is not None
        contestant.process.wait_until_idle()

    @contextlib.contextmanager
    def _noting(self, contestant: Contestant, raw: Raw | None = None) -> Iterator[None]:
        """Notes an error of the block at the measurement, or at the contestant when it cannot go on."""
        try:
            yield
        except (DetrError, OSError) as error:
            message = str(error) if isinstance(error, DetrError) else f"its process cannot be started: {first_line(error)}"
            if raw is not None:
                raw.error = message
            if raw is None or isinstance(error, WorkerDiedError):
                contestant.error = message
                self._end(contestant)

    def _end(self, contestant: Contestant) -> None:
        """Ends a process; what it said about its memory stays."""
        if contestant.process is not None:
            contestant.process.close()

    def close(self) -> None:
        """Ends all processes."""
        for contestant in self.contestants:
            self._end(contestant)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def steps_of_a_case(pace: Pace) -> int:
    """How often `Runner.measure` calls `step` for each contestant that gets through."""
    return 1 + pace.rounds + pace.callers


def require_in_range(case: Case, ranges: Mapping[str, tuple[int, int | None]]) -> None:
    """Refuses a size that a model says it does not take.

    Raises:
        InputError: names the dimension and its range.
    """
    for name, size in (("batch", case.batch), ("height", case.height), ("width", case.width)):
        low, high = ranges.get(name, (1, None))
        if size < low or (high is not None and size > high):
            raise InputError(f"{name} is {size}; this model takes {low} to {'any' if high is None else high}")


def largest_differences(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """By output that both have, the largest absolute difference; None where it is not finite or the shapes differ."""
    found: dict[str, float | None] = {}
    for name in (name for name in reference if name in outputs):
        one, other = outputs[name].astype(np.float64), reference[name]
        found[name] = None
        if one.shape == other.shape:
            with np.errstate(invalid="ignore"):  # infinity less infinity
                difference = float(np.abs(one - other).max(initial=0.0))
            found[name] = difference if np.isfinite(difference) else None
    return found


def within(differences: Mapping[str, float | None], tolerance: Mapping[str, float]) -> bool:
    """Whether every output is as close as it should be."""
    return all(value is not None and value <= tolerance[name] for name, value in differences.items())
