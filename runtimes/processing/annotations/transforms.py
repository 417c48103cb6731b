"""Changes a prepared target when its image is resized, normalised and padded.

Source: the annotation methods of `DetrImageProcessor` in transformers 4.57.6, with their order and precision. Each function
returns a new dict and changes no array of the dict that it is given. Keys that it does not know stay as they are.

Targets are dicts like those of `prepare_detection`; sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from detr_export.runtimes.processing.annotations.detection import Target

MASK_THRESHOLD = 0.5
ResizeMask = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def resize_target(target: Target, orig_size: Sequence[int], size: Sequence[int], resize_mask: ResizeMask) -> Target:
    """Scales `boxes` and `area`, resizes `masks` to bool (N, height, width) with `resize_mask`, and sets `size`."""
    ratio_height, ratio_width = (float(new) / float(old) for new, old in zip(size, orig_size))
    resized: Target = {"size": size}
    for key, value in target.items():
        if key == "boxes":
            resized[key] = value * np.asarray([ratio_width, ratio_height] * 2, dtype=np.float32)
        elif key == "area":
            resized[key] = value * (ratio_width * ratio_height)
        elif key == "masks":
            masks = np.zeros((len(value), *size), dtype=bool)
            for mask, out in zip(value, masks):
                np.greater(resize_mask(mask, (size[0], size[1])), MASK_THRESHOLD, out=out)
            resized[key] = masks
        elif key != "size":
            resized[key] = value
    return resized


def resize_mask_with_pillow(mask: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """uint8 (height, width) from a mask of zeros and ones."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), resample=resample))


def normalize_target(target: Target, image_size: Sequence[int]) -> Target:
    """Turns `boxes` from corners in pixels into (center_x, center_y, width, height), relative to the image."""
    if "boxes" not in target:
        return dict(target)
    height, width = image_size
    x_min, y_min, x_max, y_max = target["boxes"].T
    centers = np.stack([(x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min], axis=-1)
    return {**target, "boxes": centers / np.asarray([width, height, width, height], dtype=np.float32)}


def pad_target(
    target: Target, image_size: Sequence[int], padded: tuple[int, int], update_bboxes: bool, ratio_type: Any = np.float64
) -> Target:
    """Pads `masks` with zeros at the bottom and right, and makes relative `boxes` relative to the padded image.

    Args:
        image_size: size of the image before padding.
        padded: size of the image after padding; it becomes `size`.
        update_bboxes: False leaves the boxes alone, which is right for boxes in pixels.
        ratio_type: the dtype in which boxes are multiplied; the result has the dtype of the boxes.
    """
    height, width = image_size
    result: Target = {"size": padded}
    for key, value in target.items():
        if key == "masks":
            edges = ((0, 0), (0, padded[0] - height), (0, padded[1] - width))
            result[key] = np.pad(value, edges)
        elif key == "boxes" and update_bboxes:
            ratio = np.asarray([width / padded[1], height / padded[0]] * 2, dtype=ratio_type)
            result[key] = (value * ratio).astype(value.dtype)
        elif key != "size":
            result[key] = value
    return result
