"""Any two models beside each other: how far are their outputs apart?

There is no truth here and no noise floor, as the gate has them (`comparison`). So nothing is judged unless a limit is given;
only values that are not finite fail in any case.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.runtimes.errors import ArtifactError, InputError, VerificationError
from detr_export.runtimes.opening import CHECKPOINT, kind_of, open_session, spins
from detr_export.runtimes.processing.images import PathPattern
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.session import Session, is_end_to_end
from detr_export.verification.array_file import array_batches
from detr_export.verification.batches import MODEL, OTHER, Batches, grid_batches, picture_batches
from detr_export.verification.detecting import as_detecting, color_of, paired
from detr_export.verification.differences import cosine_similarity, distance, rank, signal_to_noise

EVERY = "*"  # stands for the outputs that have no limit of their own
_ATTENTION = "cross_attention"  # an output that a checkpoint gives only if it is asked


@dataclass(frozen=True)
class Difference:
    """How far an output of one model is from that of the other; NaN where one of them is not finite."""

    max_abs_diff: float
    cosine: float  # similarity, from -1 to 1
    snr: float  # signal-to-noise ratio in dB; OTHER is the signal. Infinite for equal outputs.

    @property
    def finite(self) -> bool:
        """Whether both outputs are finite."""
        return not math.isnan(self.max_abs_diff)

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity and no NaN: they become None."""
        values = {"max_abs_diff": self.max_abs_diff, "cosine": self.cosine, "snr": self.snr}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def __str__(self) -> str:
        if not self.finite:
            return "not finite"
        return f"{self.max_abs_diff:.1e}, cosine similarity {self.cosine:.9f}, SNR {self.snr:.1f} dB"


@dataclass(frozen=True)
class CaseDifferences:
    """One batch."""

    case: str
    outputs: Mapping[str, Difference]  # by name


@dataclass(frozen=True)
class Comparison:
    """How two models compared."""

    cases: tuple[CaseDifferences, ...]
    only_in_model: tuple[str, ...] = ()  # outputs that the other lacks; they were not compared
    only_in_other: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a reader has to know, such as that no image was padded
    limits: Mapping[str, float] = field(default_factory=dict)  # the largest differences that pass; others are not judged

    @property
    def worst(self) -> dict[str, Difference]:
        """The largest difference, the smallest cosine and the smallest SNR of each output, over all cases."""
        found = {}
        for name in self.cases[0].outputs:
            each = [case.outputs[name] for case in self.cases]
            finite = all(item.finite for item in each)
            found[name] = Difference(
                max(item.max_abs_diff for item in each) if finite else math.nan,
                min(item.cosine for item in each) if finite else math.nan,
                min(item.snr for item in each) if finite else math.nan,
            )
        return found

    @property
    def worst_case(self) -> dict[str, str]:
        """For each output, the case of its largest difference."""
        return {
            name: max(self.cases, key=lambda case: rank(case.outputs[name].max_abs_diff)).case
            for name in self.cases[0].outputs
        }

    @property
    def passed(self) -> bool | None:
        """Whether no output is beyond its limit, or not finite. None where no limit was given and all is finite."""
        if self._failed:
            return False
        return True if self.limits else None

    @property
    def _failed(self) -> list[str]:
        return [name for name, item in self.worst.items() if not item.max_abs_diff <= self.limits.get(name, math.inf)]

    def summary(self) -> str:
        """For people: of each output the worst and each case, then what was not compared, then the verdict."""
        lines = [f"compared over {len(self.cases)} batches: largest difference, lowest similarity, lowest SNR"]
        for name, item in self.worst.items():
            lines.append(f"{name}  {item}")
            lines += [f"  {case.case}  {case.outputs[name]}" for case in self.cases]
        for label, names in ((MODEL, self.only_in_model), (OTHER, self.only_in_other)):
            lines += [f"only in {label}, not compared: {', '.join(names)}"] * bool(names)
        lines += [f"note: {note}" for note in self.notes]
        if self.passed is False:
            return "\n".join([*lines, f"FAILED: {self.disagreement()}"])
        free = [name for name in self.worst if name not in self.limits]
        if self.limits:
            lines.append(f"passed: {', '.join(f'{name} within {limit:g}' for name, limit in self.limits.items())}")
        if free:
            lines.append(f"not judged: {', '.join(free)}; --atol sets a limit")
        return "\n".join(lines)

    def disagreement(self) -> str:
        """The outputs that failed, each with its worst case."""
        worst, places = self.worst, self.worst_case
        found = []
        for name in self._failed:
            beyond = f"differs by {worst[name].max_abs_diff:.1e} (at most {self.limits.get(name)})"
            found.append(f"{name} {beyond if worst[name].finite else 'is not finite'} at {places[name]}")
        return ", ".join(found)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers that are not finite are None."""
        return {
            "outputs": {
                name: {**item.to_dict(), "finite": item.finite, "worst_case": self.worst_case[name]}
                for name, item in self.worst.items()
            },
            "cases": [
                {"case": case.case, "outputs": {name: item.to_dict() for name, item in case.outputs.items()}}
                for case in self.cases
            ],
            "only_in_model": list(self.only_in_model),
            "only_in_other": list(self.only_in_other),
            "notes": list(self.notes),
            "limits": dict(self.limits),
            "passed": self.passed,
        }


def compare_sessions(
    model: Session,
    other: Session,
    batches: Batches | None = None,
    limits: Mapping[str, float] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Runs two models on the same images and measures.

    Args:
        model, other: open models; `other` is the reference.
        batches: from `grid_batches`, `picture_batches` or `array_batches` of these two; the first when None.
        limits: the largest absolute difference that passes, by output; `EVERY` stands for the others. Outputs without a
            limit are measured and not judged.
        progress: is told of each batch.

    Raises:
        ArtifactError: the models have no output in common, give one in different shapes, or cannot be fed the same.
        InputError: a limit is below 0, infinite or NaN, or of an unknown output; or a model does not take a batch.
        ImageError: a picture is damaged.
        BackendError: a backend failed.
    """
    names, others = [spec.name for spec in model.outputs], [spec.name for spec in other.outputs]
    common = [name for name in names if name in others]
    if not common:
        raise ArtifactError(
            f"the models have no output in common: {MODEL} gives {', '.join(names)}, {OTHER} gives {', '.join(others)}"
        )
    limits = _checked(limits or {}, common)
    batches = batches or grid_batches(model, other)
    detections = is_end_to_end(model) and is_end_to_end(other)

    cases = []
    for number, batch in enumerate(batches.made, start=1):
        progress.stage(f"comparing {number}/{batches.count} {batch.case}")
        given, reference = model.run(batch.model), other.run(batch.other)
        for name in common:
            if given[name].shape != reference[name].shape:
                raise ArtifactError(
                    f"{name} has shape {given[name].shape} in {MODEL} and {reference[name].shape} in {OTHER}, "
                    f"at {batch.case}; only outputs of one shape can be compared"
                )
        if detections:
            given, reference = paired(given, reference)
        cases.append(CaseDifferences(batch.case, {name: _measured(given[name], reference[name]) for name in common}))
    return Comparison(
        tuple(cases),
        tuple(name for name in names if name not in common),
        tuple(name for name in others if name not in common),
        batches.notes,
        limits,
    )


def compare_models(
    model: str | Path,
    other: str | Path,
    device: str = "cpu",
    other_device: str = "cpu",
    *,
    inputs: str | Path | None = None,
    images: Sequence[PathPattern] = (),
    limits: Mapping[str, float] | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Opens two models and compares them.

    If one of them is an end-to-end file, both are compared by their detections; a plain model then has its own processor
    before it and post-processing behind it.

    Args:
        model, other: ONNX files, engines or checkpoints, as in `open_session`; `other` is the reference. A checkpoint gives
            its attention if the other model does.
        device, other_device: where each of them runs.
        inputs: an `.npz` file, as in `array_batches`.
        images: pictures, as in `picture_batches`. Without both, the verification grid.
        limits, progress: as in `compare_sessions`.
        revision: for `other` on the hub: a branch, tag or commit.

    Raises:
        DetrError: as in `open_session`, `compare_sessions` and the functions that make batches.
    """
    if inputs is not None and images:
        raise InputError("inputs and images are both given; leave one of them out")
    with contextlib.ExitStack() as stack:

        def opened(path: str | Path, device: str, beside: Session | None, revision: str | None = None) -> Session:
            kind = kind_of(path)
            attentions = (
                kind == CHECKPOINT and beside is not None and any(spec.name == _ATTENTION for spec in beside.outputs)
            )
            spinning = False if spins(path, device) else None  # threads that wait busily slow the other model down
            return stack.enter_context(
                open_session(path, device, attentions=attentions, spinning=spinning, revision=revision)
            )

        # A checkpoint is opened last: it can give what the other gives.
        if kind_of(model) == CHECKPOINT:
            second = opened(other, other_device, None, revision)
            first = opened(model, device, second)
        else:
            first = opened(model, device, None)
            second = opened(other, other_device, first, revision)
        first, second = as_detecting(first, second)
        if inputs is not None and color_of(first) != color_of(second):
            raise InputError(f"{MODEL} takes {color_of(first)} images and {OTHER} {color_of(second)}; give images")
        if inputs is not None:
            batches = array_batches(first, second, inputs)
        elif images:
            batches = picture_batches(first, second, images)
        else:
            batches = grid_batches(first, second)
        return compare_sessions(first, second, batches, limits, progress)


def require_agreement(comparison: Comparison, model: str, other: str) -> None:
    """Lets a comparison pass or not; one without a limit passes if all values are finite.

    Raises:
        VerificationError: an output differs by more than its limit, or is not finite.
    """
    if comparison.passed is False:
        raise VerificationError(f"{model} disagrees with {other}: {comparison.disagreement()}")


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """Reads limits: `VALUE`, for every output, or `NAME=VALUE`.

    Raises:
        InputError: a text is malformed.
    """
    found = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            found[name if equals else EVERY] = float(value)
        except ValueError:
            raise InputError(f"limit is {text!r}; expected VALUE or NAME=VALUE, as in 1e-3 or pred_masks=0.03") from None
    return found


def _checked(limits: Mapping[str, float], outputs: Sequence[str]) -> dict[str, float]:
    """The limit of each output that has one."""
    for name, limit in limits.items():
        if name not in (EVERY, *outputs):
            raise InputError(f"there is a limit of {name}; expected one of the outputs of both, {', '.join(outputs)}")
        if not 0 <= limit < math.inf:
            raise InputError(f"limit is {limit}; expected a number from 0")
    given = {name: limits.get(name, limits.get(EVERY)) for name in outputs}
    return {name: limit for name, limit in given.items() if limit is not None}


def _measured(given: np.ndarray, reference: np.ndarray) -> Difference:
    if not (np.isfinite(given).all() and np.isfinite(reference).all()):
        return Difference(math.nan, math.nan, math.nan)
    return Difference(distance(given, reference), cosine_similarity(given, reference), signal_to_noise(given, reference))
