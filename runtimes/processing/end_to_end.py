"""What is left to do around an end-to-end file, which takes an image and gives sorted detections in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.metadata import BGR
from detr_export.runtimes.processing.detection import Kept, keep_detections
from detr_export.runtimes.processing.frames import packed

_EVERY_SCORE = -1.0  # a threshold below all


def image_batch(pictures: list[Any], color: str) -> dict[str, np.ndarray]:
    """The input of an end-to-end file.

    Args:
        pictures: RGB images of one size: PIL images or uint8 arrays (h, w, 3).
        color: the order of channels that the file takes, "rgb" or "bgr".

    Returns:
        `image` uint8 (B, H, W, 3). One frame is not copied if its pixels lie in memory as the file takes them.
    """
    frames = [np.asarray(picture) for picture in pictures]
    images = [packed(frame[..., ::-1] if color == BGR else frame) for frame in frames]
    return {"image": images[0][None] if len(images) == 1 else np.stack(images)}


def keep_sorted(outputs: Mapping[str, np.ndarray], threshold: float) -> list[Kept]:
    """The detections above `threshold` in each image, the best first, of the outputs of an end-to-end file.

    `queries` of the result are positions in the file's outputs.
    """
    results = []
    for scores, labels, boxes in zip(outputs["scores"], outputs["labels"], outputs["boxes"]):
        kept = np.flatnonzero(scores > np.float32(threshold))
        results.append(Kept(kept, scores[kept], labels[kept], boxes[kept]))
    return results


def sorted_detections(
    outputs: Mapping[str, np.ndarray], sizes: Optional[list[tuple[int, int]]] = None, top_k: Optional[int] = None
) -> dict[str, np.ndarray]:
    """What an end-to-end file would give, of the raw outputs of a plain one.

    Args:
        outputs: `logits`, `pred_boxes` and maybe `pred_masks`.
        sizes: (height, width) of each image; without them the boxes stay relative.
        top_k: how many queries are returned; None for all.

    Returns:
        `scores`, `labels` (B, K), `boxes` (B, K, 4) and maybe `masks` (B, K, h, w), the best first.
    """
    found: dict[str, list[np.ndarray]] = {"scores": [], "labels": [], "boxes": [], "masks": []}
    for index, kept in enumerate(keep_detections(outputs, _EVERY_SCORE, sizes)):
        order = np.argsort(-kept.scores, kind="stable")[:top_k]
        for name, values in (("scores", kept.scores), ("labels", kept.labels), ("boxes", kept.boxes)):
            found[name].append(values[order])
        if "pred_masks" in outputs:
            found["masks"].append(np.asarray(outputs["pred_masks"][index], dtype=np.float32)[kept.queries[order]])
    return {name: np.stack(values) for name, values in found.items() if values}


def mask_outputs(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`logits` and `pred_masks` for the segmentation functions, of the outputs of an end-to-end file.

    The file gives the best class of each query alone. All the rest of the probability is given to "no object", so a query
    must have a score above one half to be kept.

    Args:
        outputs: `scores` and `labels` (B, K), and `masks` (B, K, h, w), before the sigmoid.

    Returns:
        `logits` float32 (B, K, C + 1), for the classes up to the largest label, and `pred_masks`, which is `masks`.
    """
    scores, labels = outputs["scores"], outputs["labels"]
    classes = int(labels.max()) + 1
    logits = np.full((*scores.shape, classes + 1), -np.inf, dtype=np.float32)
    with np.errstate(divide="ignore"):  # the logarithm of 0 is minus infinity, as it should be
        np.put_along_axis(logits, labels[..., None], np.log(scores)[..., None], axis=-1)
        logits[..., -1] = np.log1p(-scores)
    return {"logits": logits, "pred_masks": outputs["masks"]}
