"""The report of a benchmark run, as dataclasses and as JSON.

Every name carries its unit: `_ms`, `_s`, `_bytes`. What was not measured is None, and so is a number that came out infinite
or NaN, which JSON cannot write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from detr_export.benchmarks.speed.statistics import Noise, Ratio, Timing, Turn

SCHEMA = 2  # raised when a reader of the older form would misread the document


@dataclass(frozen=True)
class Environment:
    """The machine and its software."""

    cpu: str  # model name
    cores: int  # logical ones that this process may use
    memory_bytes: int
    governor: str | None  # the kernel's frequency policy; None where it does not say, as in most virtual machines
    os: str
    python: str
    gpu: str | None
    driver: str | None  # of the GPU
    versions: Mapping[str, str]  # of the packages that are installed
    threads: int  # of one run of a model, the same for all variants
    instruction_sets: Sequence[str] = ()  # of the CPU, those that change how fast a model runs; empty where nothing says


@dataclass(frozen=True)
class Method:
    """How it was measured."""

    rounds: int  # asked for
    warmup_runs: int  # before each turn, not counted
    baseline: str | None  # the variant that ratios refer to; None when none could be opened
    calibration_tolerance: float
    interrupted: bool
    baseline_again: str | None = None  # the variant that is the baseline's target once more; the noise comes from these two
    why_no_noise: str | None = None  # why no noise was measured; None when it was


@dataclass(frozen=True)
class Variant:
    """One model in one backend, in a process of its own."""

    name: str
    backend: str
    target: str  # the file, folder or name of the model
    precision: str | None = None
    version: str | None = None  # of the backend's library
    file_bytes: int | None = None  # of the file, or of a folder's weights
    load_s: float | None = None  # import of the backend's library and opening of the model, in a fresh process
    first_inference_ms: float | None = None  # the first run at the first size; with torch.compile, the compilation
    peak_resident_bytes: int | None = None  # of its process, over its life
    device_memory_bytes: int | None = None  # of the GPU, held by its process when it was asked last
    error: str | None = None
    input: str | None = None  # dtype of the images that it takes, and whether they lie in page-locked memory
    checkpoint_sha256: str | None = None  # of the weights that it was made from


@dataclass(frozen=True)
class Work:
    """What one run computes, and how fast it was done."""

    gmac: float  # 1e9 multiply-accumulates
    moved_bytes: int  # weights and activations, each read and written once: an upper bound
    gflop_per_s: float  # two operations a multiply-accumulate, over the median of the session
    share_of_gemm_peak: float | None  # of what a matrix product reaches on the same device in the same precision


@dataclass(frozen=True)
class Measurement:
    """One variant at one size and batch size."""

    variant: str
    height: int  # pixels that the model gets
    width: int
    batch: int
    correct: bool | None  # None when it gave no outputs to compare
    largest_difference: Mapping[str, float | None]  # by output, from the first variant's; None when it is not finite
    tolerance: Mapping[str, float]
    rounds: int = 0  # measured
    disturbed_rounds: int = 0
    preprocess_ms: Timing | None = None
    session_ms: Timing | None = None
    postprocess_ms: Timing | None = None
    end_to_end_ms: Timing | None = None
    stages_ms: Mapping[str, Timing] = field(default_factory=dict)  # of the session on a GPU, by `device_stages.STAGES`
    images_per_second: Mapping[str, float] = field(default_factory=dict)  # by the number of concurrent callers
    ratio_to_baseline: Ratio | None = None
    work: Work | None = None
    error: str | None = None
    turns: Sequence[Turn] = ()  # every raw sample, also those of disturbed turns

    @property
    def size(self) -> str:
        """`HEIGHTxWIDTH`."""
        return f"{self.height}x{self.width}"

    @property
    def noise(self) -> Noise | None:
        """The noise of its ratio."""
        return self.ratio_to_baseline.noise if self.ratio_to_baseline else None

    @property
    def disturbed(self) -> bool:
        """Whether more than half of its turns were disturbed. Then these are in its times, too."""
        return 2 * self.disturbed_rounds > self.rounds

    @property
    def slowed_rounds(self) -> int:
        """Rounds after which the GPU's clocks were held back."""
        return sum(turn.gpu is not None and bool(turn.gpu.slowed_by) for turn in self.turns)


@dataclass(frozen=True)
class Accuracy:
    """Scores of a variant on annotated images, each in [0, 1]."""

    variant: str
    images: int
    box_AP: float | None
    box_AP50: float | None
    mask_AP: float | None
    PQ: float | None


@dataclass(frozen=True)
class Report:
    """Everything that one run of the benchmark found out."""

    started: str  # ISO 8601, with the offset from UTC
    command: Sequence[str] | None  # None for a call from Python
    environment: Environment
    method: Method
    variants: Sequence[Variant]
    measurements: Sequence[Measurement]
    accuracy: Sequence[Accuracy] = ()
    profiles: Sequence[Mapping[str, Any]] = ()  # as `detr_export.benchmarks.cost.profiling` makes them
    compiled: Sequence[Mapping[str, Any]] = ()  # as `detr_export.benchmarks.cost.compiled` makes them
    errors: Sequence[str] = ()  # what else failed: a cost, a score, a profile, a compilation
    notes: Sequence[str] = ()  # what else there is to say about the numbers
    schema: int = SCHEMA

    @property
    def empty(self) -> bool:
        """Whether no variant was opened."""
        return not self.measurements and all(item.load_s is None for item in self.variants)

    def problems(self) -> list[str]:
        """A line for each variant that failed, did not run a size, or gave other outputs than the first; then `errors`."""
        lines = [f"{item.name}: {item.error}" for item in self.variants if item.error]
        for item in self.measurements:
            where = f"{item.variant} at {item.size}, batch {item.batch}"
            if item.error:
                lines.append(f"{where}: {item.error}")
            elif item.correct is False:
                lines.append(f"{where}: WRONG, {describe_difference(item)}; it was not timed")
        return [*lines, *self.errors]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))  # tuples become lists
        return document

    def to_json(self) -> str:
        """The document as text."""
        return json.dumps(self.to_dict(), indent=1)


def describe_difference(item: Measurement) -> str:
    """The outputs that are beyond their tolerance, and by how much."""
    beyond = [
        f"{name} differs by {'an unknown amount' if value is None else format(value, '.3g')} (tolerance {limit:.3g})"
        for name, limit in item.tolerance.items()
        if (value := item.largest_difference.get(name)) is None or value > limit
    ]
    return ", ".join(beyond)
