"""Runs the variants against each other: one process each, one of them at work at a time, in rounds A B C, A B C, ...

Before anything is timed at a size, all variants give their outputs for the same inputs. A variant is wrong when its outputs
differ from those of the first one of its checkpoint by more than rounding explains; it is not timed. Variants of different
checkpoints are different models, of which only times and scores can be compared. When a variant fails it is left out, and
the others go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import numpy as np

from detr_export.benchmarks.speed.agreement import largest_differences, within
from detr_export.benchmarks.speed.gpu_state import read_gpu_state
from detr_export.benchmarks.speed.process import Process, WorkerDiedError, WorkerProcess
from detr_export.benchmarks.speed.settings import Pace, Workload
from detr_export.benchmarks.speed.statistics import Turn, schedule
from detr_export.benchmarks.speed.targets import BACKENDS, Target, require_runnable
from detr_export.benchmarks.speed.worker import Measure, Measured, Open, Opened, Prepare, Prepared, Throughput
from detr_export.runtimes.errors import DetrError, InputError, first_line
from detr_export.runtimes.progress import SILENT, Progress


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
    """What one contestant gave for one workload."""

    name: str
    workload: Workload
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
        tolerance: for a precision, by output name, the largest difference from the first variant of the same checkpoint. Of
            the tolerances of two variants the wider one counts.
        calibrate: measures how long the calibration kernel takes now, in milliseconds.
        start: makes the process of a target.
        max_batch: the largest batch that will be measured, for backends that build engines when they open a file.
        progress: what is told of each step.

    Attributes:
        contestants: in the order of the targets.
        results: what was measured so far. An interruption leaves it as it is.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        threads: int,
        tolerance: Callable[[str], Mapping[str, float]],
        calibrate: Callable[[], float],
        start: Callable[[int], Process] = WorkerProcess,
        max_batch: int = 1,
        progress: Progress = SILENT,
    ) -> None:
        self.contestants = [Contestant(target) for target in targets]
        self.results: list[Raw] = []
        self._threads, self._tolerance, self._calibrate, self._start = threads, tolerance, calibrate, start
        self._max_batch, self._progress = max_batch, progress
        self._done = self._expected = 0  # steps

    def open(self) -> None:
        """Opens all of them."""
        self._expected += len(self.contestants)
        for contestant in self.contestants:
            self._open(contestant)

    def add(self, target: Target) -> None:
        """Opens one more; it is the last in each round."""
        self._expected += 1
        self.contestants.append(Contestant(target))
        self._open(self.contestants[-1])

    @property
    def able(self) -> list[Contestant]:
        """Those that are open and have not failed for good."""
        return [contestant for contestant in self.contestants if contestant.opened and contestant.error is None]

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoints that the variants were made from, in their order; see `checkpoint_of`."""
        return list(dict.fromkeys(self.checkpoint_of(item) for item in self.contestants if item.opened))

    def checkpoint_of(self, contestant: Contestant) -> str:
        """The digest of the checkpoint that a variant was made from. Where nothing says, it is taken for the first one's."""
        first = next((item.opened.checkpoint for item in self.contestants if item.opened and item.opened.checkpoint), "")
        return (contestant.opened.checkpoint if contestant.opened else "") or first

    @property
    def of_pictures(self) -> bool:
        """Whether an end-to-end file takes part. Then sizes are those of the pictures that come in, for all variants."""
        return any(item.opened.end_to_end for item in self.contestants if item.opened)

    def measure(self, workloads: Sequence[Workload], pace: Pace) -> None:
        """For each workload, compares the outputs, and if it is to be timed, times the variants that are right."""
        for workload in workloads:
            self._expected += sum(steps_of_a_workload(item.target, pace) if workload.timed else 1 for item in self.able)
        for workload in workloads:
            raws = {contestant.target.name: Raw(contestant.target.name, workload) for contestant in self.able}
            self.results += raws.values()
            self._compare(workload, raws)
            if not workload.timed:
                continue
            ready = [item for item in self.able if item.target.timed and raws[item.target.name].correct]
            self._time(ready, raws, pace)
            for contestant in ready:
                self._call_at_once(contestant, raws[contestant.target.name], pace)

    def _open(self, contestant: Contestant) -> None:
        target = contestant.target
        self._step(f"opening {target.name}")
        with self._noting(contestant):
            require_runnable(target)
            contestant.process = self._start(self._threads)
            command = Open(target.backend, target.source, self._threads, self._max_batch, target.lean_input)
            contestant.opened = self._ask(contestant, command)
        if contestant.opened is None:
            self._end(contestant)

    def _compare(self, workload: Workload, raws: Mapping[str, Raw]) -> None:
        """The first run of each variant: its outputs are compared with those of the first one of its checkpoint."""
        firsts: dict[str, tuple[dict[str, np.ndarray], str]] = {}  # by checkpoint: outputs and precision
        for contestant in self.able:
            raw = raws[contestant.target.name]
            self._step(f"{workload}: first run of {raw.name}")
            with self._noting(contestant, raw):
                opened = cast(Opened, contestant.opened)
                if opened.end_to_end or not self.of_pictures:
                    require_in_range(workload, opened.ranges)
                command = Prepare(workload.height, workload.width, workload.batches, self.of_pictures)
                prepared: Prepared = self._ask(contestant, command)
                if contestant.first_inference_ms is None:
                    contestant.first_inference_ms = prepared.first_inference_ms
                reference, first = firsts.setdefault(self.checkpoint_of(contestant), (prepared.outputs, opened.precision))
                raw.largest_difference = largest_differences(prepared.outputs, reference)
                own, theirs = self._tolerance(opened.precision), self._tolerance(first)
                raw.tolerance = {name: max(own[name], theirs[name]) for name in raw.largest_difference}
                if not raw.largest_difference:
                    raise InputError("it has no output in common with the first variant, so it cannot be compared")
                raw.correct = within(raw.largest_difference, raw.tolerance)

    def _time(self, ready: Sequence[Contestant], raws: Mapping[str, Raw], pace: Pace) -> None:
        """All rounds; the calibration kernel runs between two turns, so each turn has one before and one after it."""
        by_name = {contestant.target.name: contestant for contestant in ready}
        command = Measure(pace.warmup_runs, pace.runs, pace.seconds)
        before_ms = self._calibrate() if ready else 0.0
        for number, name in schedule(list(by_name), pace.rounds):
            raw = raws[name]
            if raw.error is not None:
                continue
            self._step(f"{raw.workload}: round {number + 1} of {pace.rounds}, {name}")
            with self._noting(by_name[name], raw):
                # The clocks are read while they are still those of the work.
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

    def _call_at_once(self, contestant: Contestant, raw: Raw, pace: Pace) -> None:
        """Throughput with one caller, then with more of them."""
        for callers in range(1, pace.callers + 1):
            if raw.error is not None:
                break
            self._step(f"{raw.workload}: {raw.name} with {callers} caller{'s' * (callers > 1)}")
            with self._noting(contestant, raw):
                command = Throughput(callers, pace.throughput_seconds)
                raw.images_per_second[str(callers)] = float(self._ask(contestant, command))

    def _step(self, note: str) -> None:
        """Tells what begins now."""
        self._progress.step(self._done, max(self._expected, self._done + 1), note)
        self._done += 1

    def _ask(self, contestant: Contestant, command: Any, rest: bool = True) -> Any:
        """The answer; as a rule it is returned only when the process has come to rest."""
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


def steps_of_a_workload(target: Target, pace: Pace) -> int:
    """How many steps `Runner.measure` reports for a target that gets through."""
    return 1 + (pace.rounds + pace.callers if target.timed else 0)


def require_in_range(workload: Workload, ranges: Mapping[str, tuple[int, int | None]]) -> None:
    """Refuses a size that a model says it does not take.

    Raises:
        InputError: names the dimension and its range.
    """
    for name, size in (("batch", workload.batch), ("height", workload.height), ("width", workload.width)):
        low, high = ranges.get(name, (1, None))
        if size < low or (high is not None and size > high):
            raise InputError(f"{name} is {size}; this model takes {low} to {'any' if high is None else high}")
