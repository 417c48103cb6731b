"""Whether a variant gives the outputs of the first one, up to rounding: only then its time means something.

Beside an end-to-end file, detections take the place of raw outputs. Each variant resizes the pictures itself, so pixels may
be a level apart, and the limits are wide: they catch what is broken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from detr_export.benchmarks.speed.gpu_state import TF32
from detr_export.runtimes.processing.end_to_end import sorted_detections
from detr_export.verification.differences import distance

# By precision, as in `tolerances`. `labels` is the share of detections with another label, `boxes` are shares of the
# picture's sides, and `masks` the mean over a mask of the difference of probabilities. Between the two processors of
# transformers, the gate saw 0.004 on scores and 0.002 on boxes of a seeded R50.
_DETECTIONS = {
    "fp32": {"scores": 0.03, "labels": 0.1, "boxes": 0.02, "masks": 0.02},
    "fp16": {"scores": 0.15, "labels": 0.3, "boxes": 0.1, "masks": 0.1},
    "int8": {"scores": 0.5, "labels": 0.5, "boxes": 0.3, "masks": 0.3},
}
_BOX_UNIT = 1e-3  # a difference of boxes that weighs as much as one of scores that is tiny, when pairs are chosen


def tolerance(precision: str) -> Mapping[str, float]:
    """By output, the largest difference from float32 that rounding to this precision explains.

    Raises:
        ArtifactError: the precision is unknown.
    """
    from detr_export.verification.tolerances import tolerance_of

    # TF32 keeps as many bits of mantissa as float16, and the sums of both are float32.
    name = "fp16" if precision == TF32 else precision
    return {**tolerance_of(name).constant, **_DETECTIONS[name]}


def largest_differences(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """By output that both have, the largest absolute difference; None where it is not finite or the shapes differ."""
    if "scores" in reference and "scores" in outputs:
        return _detection_differences(outputs, reference)
    found: dict[str, float | None] = {}
    for name in (name for name in reference if name in outputs):
        one, other = outputs[name], reference[name]
        difference = distance(one, other) if one.shape == other.shape else math.nan
        found[name] = difference if math.isfinite(difference) else None
    return found


def relative_detections(outputs: Mapping[str, np.ndarray], sizes: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Detections in one form, of raw outputs or of those of an end-to-end file.

    Args:
        outputs: of a model that ran on pictures of these (height, width).
        sizes: one for each picture.

    Returns:
        `scores`, `labels` (B, K), `boxes` (B, K, 4) as shares of the picture's sides, and maybe `masks` (B, K, h, w), the
        best first.
    """
    if "scores" in outputs:
        scale = np.array([[width, height, width, height] for height, width in sizes], dtype=np.float32)[:, None]
        return {**outputs, "boxes": outputs["boxes"] / scale}
    return sorted_detections(outputs)


def _detection_differences(
    outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    """By output, how far detections are apart, each beside the closest one. One file may return fewer than the other."""
    from detr_export.verification.detecting import paired
    from detr_export.verification.end_to_end import mask_probabilities

    count = min(outputs["scores"].shape[1], reference["scores"].shape[1])
    names = [name for name in ("scores", "labels", "boxes", "masks") if name in outputs and name in reference]
    cut = [{name: item[name][:, :count] for name in names} for item in (outputs, reference)]
    if any(cut[0][name].shape != cut[1][name].shape for name in names):
        return dict.fromkeys(names)
    one, two = paired(cut[0], cut[1], _BOX_UNIT)
    found = {"scores": distance(one["scores"], two["scores"]), "boxes": distance(one["boxes"], two["boxes"])}
    found["labels"] = float((one["labels"] != two["labels"]).mean()) if len(one["labels"]) else 0.0
    if "masks" in names:
        apart = np.abs(mask_probabilities(one["masks"]) - mask_probabilities(two["masks"])).mean(axis=(1, 2))
        found["masks"] = float(apart.max(initial=0.0))
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def within(differences: Mapping[str, float | None], tolerance: Mapping[str, float]) -> bool:
    """Whether every output is as close as it should be, and there is one."""
    return bool(differences) and all(value is not None and value <= tolerance[name] for name, value in differences.items())
