"""The gate: an exported file must give the checkpoint's numbers.

The file, and the checkpoint in the file's own arithmetic, are both compared with the checkpoint in float64. What the
checkpoint is off by is the noise floor, and the file may be a small multiple of it off (`tolerances`). Both run on one CPU,
so the verdict does not depend on how that one rounds.

Beside the largest difference of each output, the report carries the *spread*: how far the outputs for two different images
lie apart. Where the spread is not far above the limit the comparison proves little, and it says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from detr_export.runtimes.errors import ArtifactError, VerificationError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.session import Session, as_declared, takes_padding
from detr_export.verification.cases import GRID, Case, fitting_cases
from detr_export.verification.differences import distance, rank
from detr_export.verification.end_to_end import EndToEndParity
from detr_export.verification.reference import Reference
from detr_export.verification.tolerances import tolerance_of

_WEAK_SPREAD = 10  # times the limit
_FLOAT32_STEP = float(np.finfo(np.float32).eps)  # of a value of 1; no file can be closer than the step of its largest output
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Parity:
    """How a file compared with its checkpoint; dictionaries are by output name, and all numbers are over all batches."""

    max_abs_diff: dict[str, float]  # from the checkpoint in float64
    noise_floor: dict[str, float]  # how far the checkpoint itself is off in the file's arithmetic; empty: not measured
    tolerance: dict[str, float]  # the largest difference that passes
    spread: dict[str, float]  # the largest difference between two different images
    cases: int
    worst_case: str
    end_to_end: EndToEndParity | None = None  # of an end-to-end file; the rest then is that of the plain graph in it

    @property
    def ratio(self) -> dict[str, float]:
        """The differences as multiples of the noise floor."""
        return {name: self.max_abs_diff[name] / floor for name, floor in self.noise_floor.items()}

    @property
    def passed(self) -> bool:
        """Whether every output stays within its tolerance; what is not finite does not."""
        return not self._beyond and (self.end_to_end is None or self.end_to_end.passed)

    @property
    def weak(self) -> bool:
        """Whether the outputs depend so little on the image that agreement proves little."""
        return any(self.spread[name] < _WEAK_SPREAD * self.tolerance[name] for name in self.spread)

    @property
    def _beyond(self) -> list[str]:
        return [
            name
            for name, difference in self.max_abs_diff.items()
            if not (difference <= self.tolerance[name] and math.isfinite(self.tolerance[name]))
        ]

    def summary(self) -> str:
        """A line on the whole and one on each output; one more when the comparison proves little."""
        lines = [f"{'FAILED' if self._beyond else 'verified'} over {self.cases} batches against the float64 model"]
        lines += [f"  {self._line(name)}; images differ by {self.spread[name]:.1e}" for name in self.max_abs_diff]
        if self.weak:
            lines.append(
                "warning: the outputs hardly depend on the image, so this proves little; is the checkpoint trained?"
            )
        if self.end_to_end is not None:
            lines.append(self.end_to_end.summary())
        return "\n".join(lines)

    def disagreement(self) -> str:
        """The outputs that are beyond their tolerance, and the case that is worst."""
        if not self._beyond and self.end_to_end is not None:
            return self.end_to_end.disagreement()
        return f"{', '.join(self._line(name) for name in self._beyond)}; worst at {self.worst_case}"

    def _line(self, name: str) -> str:
        difference, limit = self.max_abs_diff[name], self.tolerance[name]
        if name not in self.noise_floor:
            return f"{name} differs by {difference:.1e} (at most {limit:.1e})"
        floor = self.noise_floor[name]
        multiples = f"{self.ratio[name]:.2g} x the noise floor of {floor:.1e} (at most {limit / floor:.2g} x)"
        return f"{name} differs by {difference:.1e}, {multiples}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON and metadata."""
        values = {**asdict(self), "ratio": self.ratio, "passed": self.passed, "weak": self.weak}
        del values["end_to_end"]
        return values if self.end_to_end is None else {**values, "end_to_end": self.end_to_end.to_dict()}


def compare(
    candidate: Session,
    reference: Reference,
    grid: Iterable[Case] = GRID,
    progress: Progress = SILENT,
    stage: str = "verifying",
) -> Parity:
    """Runs a file and its checkpoint over the grid and measures.

    Args:
        candidate: the file under test; its metadata says in which precision it computes, fp32 when there is none.
        reference: the checkpoint.
        grid: cases; those outside the model's ranges are left out.
        progress: told of each case.
        stage: what progress calls this.

    Raises:
        ArtifactError: the candidate lacks an output, gives another shape, has an unknown precision, or takes no case of the
            grid.
    """
    metadata = candidate.metadata or reference.metadata
    precision = metadata.precision
    allowed = tolerance_of(precision)
    names = [spec.name for spec in reference.outputs]
    absent = set(names) - {spec.name for spec in candidate.outputs}
    if absent:
        raise ArtifactError(f"the file has no output {', '.join(sorted(absent))}; expected {', '.join(names)}")
    metadata = replace(metadata, pixel_mask=takes_padding(candidate.inputs))
    cases = fitting_cases(metadata, grid)
    if not cases:
        raise ArtifactError(f"no case of the verification grid fits the model's ranges {dict(metadata.ranges)}")

    found = {name: _Measured() for name in names}
    for seed, case in enumerate(cases):
        progress.stage(f"{stage} {seed + 1}/{len(cases)} {case}")
        given = _run(candidate, reference, case, metadata, seed)
        noise = {} if allowed.multiple is None else reference.noise(precision, case, metadata, seed)
        for name, truth in reference.truth(case, metadata, seed).items():
            if given[name].shape != truth.shape:
                raise ArtifactError(f"{name} has shape {given[name].shape} at {case}; expected {truth.shape}")
            found[name].add(case, given[name], truth, noise.get(name))

    floors = {} if allowed.multiple is None else {name: item.floor for name, item in found.items()}
    limits = {name: allowed.multiple * floors[name] if allowed.multiple else allowed.constant[name] for name in names}
    worst = max(names, key=lambda name: rank(found[name].difference / limits[name]))
    return Parity(
        {name: item.difference for name, item in found.items()},
        floors,
        limits,
        {name: item.spread for name, item in found.items()},
        len(cases),
        found[worst].worst_case,
    )


def require(parity: Parity, name: str) -> None:
    """Lets a file pass or not.

    Raises:
        VerificationError: an output differs by more than its tolerance.
    """
    if not parity.passed:
        raise VerificationError(f"{name} disagrees with its checkpoint: {parity.disagreement()}")


class _Measured:
    """What is known of one output so far."""

    def __init__(self) -> None:
        self.difference = self.spread = 0.0
        self.worst_case = ""
        self._noise = self._largest = 0.0
        self._first: np.ndarray | None = None

    def add(self, case: Case, given: np.ndarray, truth: np.ndarray, noise: float | None) -> None:
        """Takes in the outputs for one batch, and how far the checkpoint was off."""
        difference = distance(given, truth)
        if not self.worst_case or rank(difference) > rank(self.difference):
            self.difference, self.worst_case = difference, str(case)
        if noise is not None:
            self._noise = max(self._noise, noise, key=rank)
            self._largest = max(self._largest, float(np.abs(truth).max()))
        # Maps have the size of their batch, so they are compared inside it; other outputs also from batch to batch.
        if self._first is None:
            self._first = truth[:1]
        for anchor in (self._first, truth[:1]):
            if anchor.shape[1:] == truth.shape[1:]:
                self.spread = max(self.spread, distance(truth, anchor))

    @property
    def floor(self) -> float:
        """The noise, or the step of float32 at the largest value, below which nothing can be told. It is never 0."""
        return max(self._noise, _FLOAT32_STEP * self._largest, _SMALLEST, key=rank)


def _run(candidate: Session, reference: Reference, case: Case, metadata: Metadata, seed: int) -> dict[str, np.ndarray]:
    return candidate.run(as_declared(candidate.inputs, reference.feeds(case, metadata, seed).file))
