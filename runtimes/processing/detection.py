"""Turn raw model outputs into detections, in numpy.

Source: `post_process_object_detection` of transformers 4.57.6 and `PostProcess` in the published DETR code. Labels and
boxes are the same numbers; scores differ by the float32 rounding of `exp` at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from detr_export.runtimes.errors import InputError

TargetSizes = Union[np.ndarray, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Kept:
    """The queries of one image that are detections, in the order of the queries."""

    queries: np.ndarray  # int64 (N,), positions among the model's queries
    scores: np.ndarray  # float32 (N,), the probability of the best real class
    labels: np.ndarray  # int64 (N,), that class, 0 to C-1
    boxes: np.ndarray  # float32 (N, 4), (x_min, y_min, x_max, y_max)


def post_process_object_detection(
    outputs: Any, threshold: float = 0.5, target_sizes: Optional[TargetSizes] = None
) -> list[dict[str, np.ndarray]]:
    """The detections above `threshold` in each image, in the order of the queries.

    `outputs` has, as attributes or as mapping keys,

    - `logits`: float32 (B, Q, C+1), where the last class is "no object";
    - `pred_boxes`: float32 (B, Q, 4), (center_x, center_y, width, height) relative to the unpadded image.

    `target_sizes` is a (height, width) pair for each image, or an array (B, 2). Without it the boxes stay relative.

    Returns one dict for each image:

    - `scores`: float32 (N,), the probability of the best real class, strictly above `threshold`;
    - `labels`: int64 (N,), 0 to C-1;
    - `boxes`: float32 (N, 4), (x_min, y_min, x_max, y_max), pixels of the target size; not clipped to the image.

    Raises InputError when the arrays do not have these shapes or `target_sizes` is not one pair for each image.
    """
    found = keep_detections(outputs, threshold, target_sizes)
    return [{"scores": kept.scores, "labels": kept.labels, "boxes": kept.boxes} for kept in found]


def keep_detections(
    outputs: Any,
    threshold: float = 0.5,
    target_sizes: Optional[TargetSizes] = None,
    probabilities: Optional[np.ndarray] = None,
) -> list[Kept]:
    """`post_process_object_detection`, which also says which queries it kept; arguments and errors as there.

    `probabilities` is the softmax of the logits, float32 (B, Q, C+1), if somebody else has computed it.
    """
    logits = np.asarray(_field(outputs, "logits"), dtype=np.float32)
    pred_boxes = np.asarray(_field(outputs, "pred_boxes"), dtype=np.float32)
    if logits.ndim != 3 or logits.shape[2] < 2:
        raise InputError(f"logits have shape {logits.shape}: expected (B, Q, C+1) with at least one class")
    if pred_boxes.shape != (*logits.shape[:2], 4):
        raise InputError(f"pred_boxes have shape {pred_boxes.shape}: expected {(*logits.shape[:2], 4)} to match logits")

    # The best real class of each query
    probabilities = (softmax(logits) if probabilities is None else probabilities)[..., :-1]
    labels = probabilities.argmax(axis=-1).astype(np.int64)
    scores = probabilities.max(axis=-1)

    # Boxes in pixels
    boxes = center_to_corners(pred_boxes)
    if target_sizes is not None:
        height, width = _target_sizes(target_sizes, len(logits)).T
        boxes = boxes * np.stack([width, height, width, height], axis=1)[:, None, :]

    # The queries above the threshold, image by image
    kept = (np.flatnonzero(row > np.float32(threshold)) for row in scores)
    return [Kept(k, s[k], c[k], b[k]) for k, s, c, b in zip(kept, scores, labels, boxes)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float32 in and out. The maximum is subtracted first, so that `exp` never overflows."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def center_to_corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) from (center_x, center_y, width, height) to (x_min, y_min, x_max, y_max), same dtype."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    half = sizes * boxes.dtype.type(0.5)
    return np.concatenate([centers - half, centers + half], axis=-1)


def _field(outputs: Any, name: str) -> Any:
    if isinstance(outputs, Mapping):
        if name in outputs:
            return outputs[name]
    elif hasattr(outputs, name):
        return getattr(outputs, name)
    raise InputError(f"the outputs have no {name}: expected logits and pred_boxes, as attributes or keys")


def _target_sizes(target_sizes: TargetSizes, batch: int) -> np.ndarray:
    """float32 (B, 2), (height, width)."""
    if len(target_sizes) != batch:
        raise InputError(f"{len(target_sizes)} target sizes for a batch of {batch}: pass one (height, width) each")
    try:
        sizes = np.asarray(target_sizes, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError("target_sizes are not all (height, width) pairs of numbers") from error
    if sizes.shape != (batch, 2):
        raise InputError(f"target_sizes have shape {sizes.shape}: expected ({batch}, 2), a (height, width) for each image")
    return sizes
