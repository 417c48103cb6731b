"""Results as a document of LabelMe, which it opens beside a picture.

Source of the format: `_label_file.py` of labelme 6.3.1; version 5 reads the same keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.results.interop.polygons import parts_of

_VERSION = "5.0.0"  # of the first LabelMe that has all keys; newer ones read it


def labelme_document(
    image_path: str,
    image_size: tuple[int, int],
    names: Sequence[str],
    boxes: np.ndarray,
    scores: Sequence[Optional[float]],
    masks: Optional[Iterable[np.ndarray]] = None,
) -> dict[str, Any]:
    """The document of a picture: a rectangle for each object, or with masks a polygon for each part of each object.

    The parts of one object have one `group_id`, its number from 0. A hole is joined to the outline around it by a line
    without width. An object whose mask has no pixel has its rectangle.

    Args:
        image_path: of the picture, from the folder in which the document will lie.
        image_size: (height, width) of the upright picture, pixels.
        names: of the classes of the N objects.
        boxes: float32 (N, 4), (x_min, y_min, x_max, y_max), pixels.
        scores: are kept under `score`, which LabelMe leaves as it is; None where an object has none.
        masks: N of bool (height, width).
    """
    shapes: list[dict[str, Any]] = []
    of_objects = iter(masks) if masks is not None else None
    for number, (name, box, score) in enumerate(zip(names, boxes.tolist(), scores)):
        parts = [part.tolist() for part in parts_of(next(of_objects))] if of_objects is not None else []
        group = number if len(parts) > 1 else None
        kind = "polygon" if parts else "rectangle"
        shapes += [_shape(name, points, kind, group, score) for points in parts or [[box[:2], box[2:]]]]
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image_size[0],
        "imageWidth": image_size[1],
    }


def _shape(name: str, points: list[list[float]], kind: str, group: Optional[int], score: Optional[float]) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "label": name,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }
    return shape if score is None else {**shape, "score": score}
