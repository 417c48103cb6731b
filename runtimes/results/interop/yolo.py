"""Results as YOLO's tools write them: a line for each object of a picture, and the names of the classes.

Source of the format: the documentation of ultralytics, "Object Detection Datasets Overview" and "Instance Segmentation
Datasets Overview". `detr_export.data.yolo` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import numpy as np

from detr_export.runtimes.results.interop.polygons import join, parts_of


def yolo_lines(
    image_size: tuple[int, int],
    labels: Sequence[int],
    boxes: np.ndarray,
    masks: Optional[Iterable[np.ndarray]] = None,
    scores: Optional[Sequence[float]] = None,
) -> str:
    """A line for each object: `class center_x center_y width height`, or with masks `class x1 y1 x2 y2 ...`.

    Coordinates go from 0 to 1, and have all digits of float64, so that float32 boxes are the same when they are read again.
    A mask is one polygon; its parts and holes are joined by lines without width. A mask without pixels becomes the corners
    of the box, because readers refuse a file with lines of both kinds.

    Args:
        image_size: (height, width), pixels.
        labels: ids of the N classes.
        boxes: float32 (N, 4), (x_min, y_min, x_max, y_max), pixels.
        masks: N of bool (height, width).
        scores: are put at the ends of the lines; None for lines without them.
    """
    height, width = image_size
    lines = []
    of_objects = iter(masks) if masks is not None else None
    for index, (label, box) in enumerate(zip(labels, boxes.tolist())):
        if of_objects is None:
            numbers = _relative(box, width, height)
        else:
            polygon = join(parts_of(next(of_objects)) or [_corners(box)])
            numbers = (polygon / (width, height)).ravel().tolist()
        if scores is not None:
            numbers.append(scores[index])
        lines.append(" ".join([str(int(label)), *map(str, numbers)]) + "\n")
    return "".join(lines)


def _relative(box: Sequence[float], width: int, height: int) -> list[float]:
    x_min, y_min, x_max, y_max = box
    return [(x_min + x_max) / 2 / width, (y_min + y_max) / 2 / height, (x_max - x_min) / width, (y_max - y_min) / height]


def _corners(box: Sequence[float]) -> np.ndarray:
    x_min, y_min, x_max, y_max = box
    return np.array([(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)])


def yolo_yaml(id2label: Mapping[int, str]) -> str:
    """A data.yaml whose pictures and text files lie beside it. Classes are numbered without gaps, as its readers want."""
    lines = ["train: .", "val: .", "names:"]
    lines += [f"  {label}: {_quoted(name)}" for label, name in enumerate(yolo_names(id2label))]
    return "\n".join(lines) + "\n"


def yolo_names(id2label: Mapping[int, str]) -> list[str]:
    """The name of each class from 0 to the largest id; an id that the model does not have is its own name."""
    return [id2label.get(label, str(label)) for label in range(max(id2label, default=-1) + 1)]


def _quoted(name: str) -> str:
    """A text in YAML's double quotes. What cannot be printed is escaped."""
    escaped = (
        f"\\{character}" if character in '"\\' else character if character.isprintable() else f"\\U{ord(character):08x}"
        for character in name
    )
    return f'"{"".join(escaped)}"'
