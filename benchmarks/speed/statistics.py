"""What is made of raw times: percentiles, which turns count, and ratios of turns that ran one after the other.

A turn is what one variant measured in one round. The machine's speed drifts (other users, clocks, heat). So a ratio is taken
inside each round, between neighbours in time, and the median of the rounds is reported with their spread. A turn is
disturbed when the calibration kernel ran at another speed than usual right before or after it. Disturbed turns do not count,
as long as at least half of the turns are left.

The baseline takes part twice. How far it is from itself is the noise, and a ratio that is closer to 1 says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from detr_export.benchmarks.speed.device_stages import STAGES
from detr_export.benchmarks.speed.gpu_state import GpuState

PARTS = ("preprocess_ms", "session_ms", "postprocess_ms", "end_to_end_ms")
CALIBRATION_TOLERANCE = 0.1  # of the median; a quiet machine stays within a few percent
_ROUNDS_FOR_PERCENTILES = 10  # with fewer, the 10th and 90th percentile are nearly the extremes
# Equal variants would be called different in 20 % of comparisons with 2 rounds, 11 % with 3, 4 % with 4, and 0.5 % with 7
# (simulated, with normal errors). Of the usual 7 rounds at least 4 count.
LEAST_ROUNDS_FOR_NOISE = 4


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one part: the least, percentiles (numpy's linear ones), and the samples they are made of."""

    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Turn:
    """What one variant measured in one round."""

    round: int  # from 0
    calibration_before_ms: float  # time of the calibration kernel right before the turn
    calibration_after_ms: float
    preprocess_ms: tuple[float, ...]
    session_ms: tuple[float, ...]
    postprocess_ms: tuple[float, ...]
    end_to_end_ms: tuple[float, ...]
    disturbed: bool = False
    gpu: GpuState | None = None  # right after the turn, for a variant that runs on one
    stages_ms: tuple[tuple[float, ...], ...] = ()  # a row a run, in the order of `device_stages.STAGES`

    def part(self, name: str) -> tuple[float, ...]:
        """The samples of one of `PARTS`."""
        samples: tuple[float, ...] = getattr(self, name)
        return samples


@dataclass(frozen=True)
class Noise:
    """How far from 1 a ratio must be to mean something: with 0.25, ratios from 1 / 1.25 to 1.25 are no difference."""

    session: float
    end_to_end: float


@dataclass(frozen=True)
class Ratio:
    """A variant's time over the baseline's: below 1 is faster."""

    session: float  # median over the rounds of the ratio of the two medians
    session_low: float  # 10th percentile over the rounds; the least when there are fewer than ten
    session_high: float  # 90th, or the largest
    end_to_end: float
    noise: Noise | None = None  # None for the baseline itself, and where it was not measured
    session_differs: bool | None = None  # whether `session` is beyond the noise; None without noise
    end_to_end_differs: bool | None = None


def schedule(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """The order of turns, (round, name): A B C, A B C, ... so that a drift of the machine affects all of them alike."""
    for number in range(rounds):
        for name in names:
            yield number, name


def percentiles(samples: Sequence[float] | np.ndarray, shares: Sequence[float]) -> list[float]:
    """Percentiles, interpolated linearly between samples as NumPy does by default.

    Args:
        samples: at least one number.
        shares: in percent; 50 is the median.
    """
    return [float(value) for value in np.percentile(samples, shares)]


def timing(samples: Iterable[float]) -> Timing | None:
    """Percentiles of milliseconds; None where there are none."""
    values = tuple(float(value) for value in samples)
    if not values:
        return None
    p50, p90, p95, p99 = percentiles(values, (50, 90, 95, 99))
    return Timing(min(values), p50, p90, p95, p99, values)


def is_disturbed(before_ms: float, after_ms: float, usual_ms: float, tolerance: float = CALIBRATION_TOLERANCE) -> bool:
    """Whether the calibration kernel, before or after a turn, was off its usual time by more than the tolerance."""
    return any(abs(value - usual_ms) > tolerance * usual_ms for value in (before_ms, after_ms))


def mark_disturbed(groups: Sequence[Sequence[Turn]], tolerance: float = CALIBRATION_TOLERANCE) -> list[list[Turn]]:
    """The turns of all variants and sizes of a run, marked against the median of all their calibrations."""
    calibrations = [
        value for turns in groups for turn in turns for value in (turn.calibration_before_ms, turn.calibration_after_ms)
    ]
    usual_ms = float(np.median(calibrations)) if calibrations else 0.0

    def marked(turn: Turn) -> Turn:
        disturbed = is_disturbed(turn.calibration_before_ms, turn.calibration_after_ms, usual_ms, tolerance)
        return replace(turn, disturbed=disturbed)

    return [[marked(turn) for turn in turns] for turns in groups]


def kept(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that count: those that were not disturbed; all of them if more than half were disturbed."""
    return _unless_too_few(turns, lambda turn: not turn.disturbed)


def pooled(turns: Sequence[Turn], part: str) -> Timing | None:
    """The percentiles of one part over the turns that count."""
    return timing(sample for turn in kept(turns) for sample in turn.part(part))


def pooled_stages(turns: Sequence[Turn]) -> dict[str, Timing]:
    """The percentiles of each of `STAGES` over the turns that count; empty where there was no GPU."""
    rows = [row for turn in kept(turns) for row in turn.stages_ms]
    found = {name: timing(column) for name, column in zip(STAGES, zip(*rows, strict=True), strict=False)}
    return {name: value for name, value in found.items() if value is not None}


def ratio_to(turns: Sequence[Turn], baseline: Sequence[Turn], noise: Noise | None = None) -> Ratio | None:
    """Compares a variant with the baseline, round by round.

    A round counts when neither of its two turns was disturbed. If less than half of the rounds would count, all of them do.
    The result is None without a round in which both ran.
    """
    pairs = _pairs(turns, baseline)
    if not pairs:
        return None
    low, session, high = _spread(pairs, "session_ms")
    _, end_to_end, _ = _spread(pairs, "end_to_end_ms")
    differs = (is_beyond(session, noise.session), is_beyond(end_to_end, noise.end_to_end)) if noise else (None, None)
    return Ratio(session, low, high, end_to_end, noise, *differs)


def noise_of(again: Sequence[Turn], baseline: Sequence[Turn]) -> Noise | None:
    """Compares the baseline with itself: the noise is the end of the ratios' spread that is farther from 1.

    A single round varies more than the median of the rounds, so a small difference is missed rather than made up. The result
    is None when fewer than `LEAST_ROUNDS_FOR_NOISE` rounds count: so few may agree by chance.

    Args:
        again: the turns of the baseline's target under its second name.
        baseline: the turns under its first.
    """
    pairs = _pairs(again, baseline)
    if len(pairs) < LEAST_ROUNDS_FOR_NOISE:
        return None
    spreads = [_spread(pairs, part) for part in ("session_ms", "end_to_end_ms")]
    return Noise(*(max(_distance(low), _distance(high)) for low, _, high in spreads))


def is_beyond(ratio: float, noise: float) -> bool:
    """Whether a ratio is farther from 1 than the noise."""
    return _distance(ratio) > noise


def _distance(ratio: float) -> float:
    """From 1; half the time is as far as double the time."""
    return max(ratio, 1 / ratio) - 1


def _pairs(turns: Sequence[Turn], baseline: Sequence[Turn]) -> list[tuple[Turn, Turn]]:
    """The two turns of each round that counts."""
    theirs = {turn.round: turn for turn in baseline}
    pairs = [(turn, theirs[turn.round]) for turn in turns if turn.round in theirs]
    return _unless_too_few(pairs, lambda pair: not (pair[0].disturbed or pair[1].disturbed))


def _spread(pairs: Sequence[tuple[Turn, Turn]], part: str) -> list[float]:
    """Lower end, median and upper end of the rounds' ratios."""
    ratios = [float(np.median(one.part(part)) / np.median(other.part(part))) for one, other in pairs]
    low, high = (10, 90) if len(pairs) >= _ROUNDS_FOR_PERCENTILES else (0, 100)
    return percentiles(ratios, (low, 50, high))


def _unless_too_few(items: Sequence, wanted: Callable) -> list:
    chosen = [item for item in items if wanted(item)]
    return chosen if 2 * len(chosen) >= len(items) else list(items)
