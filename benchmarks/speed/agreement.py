"""Whether a variant gives the outputs of the first one, up to rounding: only then its time means something."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from detr_export.benchmarks.speed.gpu_state import TF32
from detr_export.verification.differences import distance


def tolerance(precision: str) -> Mapping[str, float]:
    """By output, the largest difference from float32 that rounding to this precision explains.

    Raises:
        ArtifactError: the precision is unknown.
    """
    from detr_export.verification.tolerances import tolerance_of

    # TF32 keeps as many bits of mantissa as float16, and the sums of both are float32.
    return tolerance_of("fp16" if precision == TF32 else precision).constant


def largest_differences(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """By output that both have, the largest absolute difference; None where it is not finite or the shapes differ."""
    found: dict[str, float | None] = {}
    for name in (name for name in reference if name in outputs):
        one, other = outputs[name], reference[name]
        difference = distance(one, other) if one.shape == other.shape else math.nan
        found[name] = difference if math.isfinite(difference) else None
    return found


def within(differences: Mapping[str, float | None], tolerance: Mapping[str, float]) -> bool:
    """Whether every output is as close as it should be."""
    return all(value is not None and value <= tolerance[name] for name, value in differences.items())
