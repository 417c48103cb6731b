"""What is asked of a benchmark run: sizes, batch sizes, and how much is run; and which of these requests are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detr_export.benchmarks.accuracy.scores import Annotated, find_annotated
from detr_export.benchmarks.speed.environment import checked_threads
from detr_export.benchmarks.speed.pictures import load_pictures, make_batches, synthetic_picture
from detr_export.benchmarks.speed.tables import require_report_folder
from detr_export.runtimes.backends.tensorrt.api import tensorrt_rtx
from detr_export.runtimes.cpu import available_cores
from detr_export.runtimes.errors import InputError

DEFAULT_ROUNDS = 7
DEFAULT_SECONDS = 1.0  # of a turn
_WARMUP_RUNS = 1  # a turn follows those of the other variants, which have emptied the caches
_CALLERS = 4  # by default not more, on however many cores
_SWEEP_SCALES = (0.5, 0.75, 1.0, 1.25)  # of the model's own size
_SWEEP_BATCHES = (1, 2, 4)
_SWEEP_STEP = 32  # pixels; the backbone's stride

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Pace:
    """How much is run."""

    rounds: int
    warmup_runs: int  # before each turn
    runs: int | None  # of a turn; or
    seconds: float | None  # of a turn, at least one run
    callers: int  # throughput is measured with 1 to that many; 0 leaves it out
    throughput_seconds: float


@dataclass(frozen=True)
class Workload:
    """One size and batch size, and the pictures for it."""

    height: int
    width: int
    batch: int
    batches: tuple[tuple[np.ndarray, ...], ...]  # each of `batch` RGB pictures (h, w, 3) uint8
    timed: bool = True  # False: outputs are compared and nothing is timed

    def __str__(self) -> str:
        return f"{self.height}x{self.width}" + (f", batch {self.batch}" if self.batch > 1 else "")

    @property
    def key(self) -> tuple[int, int, int]:
        """(height, width, batch)."""
        return self.height, self.width, self.batch


@dataclass(frozen=True)
class Settings:
    """A run that can be started."""

    sizes: tuple[Size, ...]  # none: the first model's own
    batches: tuple[int, ...]
    sweep: bool  # in place of both
    threads: int
    pace: Pace
    pictures: tuple[np.ndarray, ...]  # RGB (h, w, 3) uint8
    data: Annotated | None  # what is scored
    limit: int | None  # images that are scored; all when None
    profile: bool
    compiled: bool = False
    noise: bool = True  # the baseline is measured twice
    checked: tuple[tuple[int, int, int], ...] = ()  # (height, width, batch) that are compared first and not timed

    @property
    def max_batch(self) -> int:
        """The largest batch that will be measured."""
        return max(_SWEEP_BATCHES if self.sweep else self.batches)

    def workloads(self, own: Size) -> list[Workload]:
        """What is measured, for models whose own size this is."""
        wanted = (
            sweep_sizes(own) if self.sweep else [(*size, batch) for size in self.sizes or [own] for batch in self.batches]
        )
        return [
            Workload(height, width, batch, make_batches(self.pictures, batch), timed)
            for timed, group in ((False, self.checked), (True, wanted))
            for height, width, batch in dict.fromkeys(group)
        ]


def check_settings(
    sizes: Sequence[Size] = (),
    batches: Sequence[int] = (),
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    runs: int | None = None,
    seconds: float | None = None,
    images: str | Path | None = None,
    accuracy: str | Path | None = None,
    limit: int | None = None,
    callers: int | None = None,
    sweep: bool = False,
    profile: bool = False,
    compiled: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    noise: bool = True,
) -> Settings:
    """Checks what is asked for and loads the pictures, before anything is measured.

    Args:
        All as in `detr_export.benchmarks.run`.

    Raises:
        DetrError: as `detr_export.benchmarks.run`.
    """
    # Numbers first: they cost nothing to check.
    checked = checked_threads(threads)
    pace = _pace(rounds, runs, seconds, min(_CALLERS, available_cores()) if callers is None else callers)
    check_sizes(sizes, batches, sweep)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1")

    if compiled:
        tensorrt_rtx()  # says what to install

    # Then what is to be written and read.
    if output is not None:
        require_report_folder(Path(output), overwrite)
    data = None if accuracy is None else find_annotated(accuracy)
    max_batch = max(_SWEEP_BATCHES if sweep else batches, default=1)
    pictures = [synthetic_picture(seed) for seed in range(max_batch)] if images is None else load_pictures(images, max_batch)
    return Settings(
        tuple(sizes), tuple(batches) or (1,), sweep, checked, pace, tuple(pictures), data, limit, profile, compiled, noise
    )


def check_sizes(sizes: Sequence[Size], batches: Sequence[int], sweep: bool) -> None:
    """Refuses sizes that are not positive, and sizes beside a sweep.

    Raises:
        InputError: says which.
    """
    for height, width in sizes:
        if height < 1 or width < 1:
            raise InputError(f"size is {height}x{width}; expected at least 1x1")
    for batch in batches:
        if batch < 1:
            raise InputError(f"batch is {batch}; expected at least 1")
    if sweep and (sizes or batches):
        raise InputError("a sweep chooses its own sizes and batch sizes; leave out either the sweep or --size and --batch")


def parse_size(text: str) -> Size:
    """(height, width) of `HEIGHTxWIDTH`.

    Raises:
        InputError: it is something else.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InputError(f"size is {text!r}; expected HEIGHTxWIDTH in pixels, such as 800x1066")
    return int(height), int(width)


def parse_batch(text: str) -> int:
    """Images in a batch.

    Raises:
        InputError: it is no positive number.
    """
    if not (text.isdecimal() and int(text)):
        raise InputError(f"batch is {text!r}; expected a number of images, at least 1")
    return int(text)


def sweep_sizes(own: Size) -> list[tuple[int, int, int]]:
    """(height, width, batch) of a sweep: several sizes around the model's own with one image, then its own in batches."""
    sizes = [
        tuple(max(_SWEEP_STEP, round(side * scale / _SWEEP_STEP) * _SWEEP_STEP) for side in own) for scale in _SWEEP_SCALES
    ]
    single = [(height, width, 1) for height, width in sizes]
    height, width = sizes[_SWEEP_SCALES.index(1.0)]
    return list(dict.fromkeys([*single, *((height, width, batch) for batch in _SWEEP_BATCHES)]))


def _pace(rounds: int, runs: int | None, seconds: float | None, callers: int) -> Pace:
    if runs is not None and seconds is not None:
        raise InputError("a turn has either a number of runs or a number of seconds; leave --runs or --seconds out")
    for name, value, least in (("rounds", rounds, 1), ("runs", runs, 1), ("callers", callers, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"seconds is {seconds:g}; expected more than 0")
    if runs is None and seconds is None:
        seconds = DEFAULT_SECONDS
    # Who gives a number of runs has little time: then one run of each caller is enough.
    return Pace(rounds, _WARMUP_RUNS, runs, seconds, callers, seconds or 0.0)
