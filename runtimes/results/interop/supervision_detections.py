"""Results as `supervision.Detections`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

with warnings.catch_warnings():  # it says that it works without OpenCV, and where warnings are errors it would not import
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision

CLASS_NAME = "class_name"  # supervision.config.CLASS_NAME_DATA_FIELD: its annotators take names from there


def supervision_of_boxes(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, names: Sequence[str], masks: Optional[np.ndarray]
) -> Any:
    """Copies of the arrays of `Detections`, whose docstring has their shapes. `data` has the names under `class_name`."""
    return supervision.Detections(
        xyxy=boxes.astype(np.float32),
        confidence=scores.astype(np.float32),
        class_id=labels.astype(int),
        mask=None if masks is None else masks.astype(bool),
        data={CLASS_NAME: np.array(names, dtype=str)},
    )


def supervision_of_masks(
    masks: np.ndarray, scores: Optional[Sequence[float]], labels: Sequence[int], names: Sequence[str]
) -> Any:
    """The segments of one image.

    Args:
        masks: bool (N, height, width). Boxes are what `supervision.mask_to_xyxy` makes of them: maxima are the last pixels.
        scores: of the segments, or None if they have none.
        labels, names: of their classes.

    Numbers: `supervision.Detections.from_transformers`, where every segment of transformers has an id of its own.
    """
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks),
        confidence=None if scores is None else np.array(scores, dtype=float),
        class_id=np.array(labels, dtype=int),
        mask=masks,
        data={CLASS_NAME: np.array(names, dtype=str)},
    )
