"""Whether both sides give the same result: without that, their times cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from detr_export.runtimes.errors import VerificationError

MAX_DIFFERING_PIXELS = 1e-4  # share of a map; where two masks tie within float32 rounding, either of them may win
SCORE_TOLERANCE = 1e-5


def require_equal_pixels(ours: Mapping[str, Any], theirs: Mapping[str, Any], step: float = 0.0) -> float:
    """Compares `pixel_values` and `pixel_mask` of both sides.

    Args:
        ours, theirs: a processor's result each, as numpy arrays.
        step: the largest difference of a pixel value that is allowed; 0 asks for the same bits.

    Returns:
        The largest difference, 0 for the same bits.

    Raises:
        VerificationError: they differ by more, or have other shapes or masks.
    """
    if not np.array_equal(ours["pixel_mask"], theirs["pixel_mask"]):
        raise VerificationError("the pixel masks of the two sides differ; run: pytest tests/runtimes/processing")
    mine, other = np.asarray(ours["pixel_values"]), np.asarray(theirs["pixel_values"])
    if np.array_equal(mine, other):
        return 0.0
    largest = float(np.abs(mine - other).max())
    if not largest <= step:
        raise VerificationError(
            f"pixels of the two sides differ by {largest:.3g} (at most {step:.3g} expected); "
            "run: pytest tests/runtimes/processing"
        )
    return largest


def require_equal_detections(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Compares detections: the same labels and boxes, and scores up to the rounding of the exponential.

    Raises:
        VerificationError: they differ by more.
    """
    same = all(np.array_equal(ours[key], np.asarray(theirs[key])) for key in ("labels", "boxes"))
    scores = np.asarray(theirs["scores"])
    if not same or not np.allclose(ours["scores"], scores, rtol=0, atol=SCORE_TOLERANCE):
        raise VerificationError(
            "the detections of the two sides differ; run: pytest tests/runtimes/processing/test_detection.py"
        )
    return "bit-equal" if np.array_equal(ours["scores"], scores) else f"scores within {SCORE_TOLERANCE:.0e}"


def require_equal_maps(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Compares segmentation maps: the same segments, and the same id at almost every pixel.

    Raises:
        VerificationError: more than `MAX_DIFFERING_PIXELS` of the pixels differ, or segments are not the same.
    """
    share = float(np.mean(ours["segmentation"] != np.asarray(theirs["segmentation"])))
    same = len(ours["segments_info"]) == len(theirs["segments_info"]) and all(
        {**mine, "score": 0} == {**other, "score": 0} and abs(mine["score"] - other["score"]) <= SCORE_TOLERANCE
        for mine, other in zip(ours["segments_info"], theirs["segments_info"], strict=True)
    )
    if share > MAX_DIFFERING_PIXELS or not same:
        raise VerificationError(
            f"{share:.2e} of the pixels differ (at most {MAX_DIFFERING_PIXELS:.0e} expected) and the segments are "
            f"{'the same' if same else 'not the same'}; run: pytest tests/runtimes/processing/test_segmentation.py"
        )
    return "all pixels equal" if share == 0 else f"all but {share:.1e} of the pixels"
