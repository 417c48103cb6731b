"""Turns one COCO detection record into one training target.

Source: `prepare_coco_detection_annotation` of transformers 4.57.6; keys, dtypes, order and values are the same.
What differs, on purpose:

- a malformed record raises an AnnotationError that names the image and the field; upstream raises KeyError, drops boxes
  without area, or continues with NaN;
- compressed run-length encodings are read too, and run-length encodings do not need pycocotools;
- either all annotations of an image have keypoints or none. Upstream checks only the first one.

One behaviour of upstream may surprise you: keypoints stay in pixels of the original image in every later step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from detr_export.runtimes.errors import AnnotationError, missing_extra
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.rle import decode_rle

Size = tuple[int, int]  # (height, width), pixels
Target = dict[str, Any]


def prepare_detection(record: Mapping[str, Any], size: Size, with_masks: bool, name: str = "the annotation") -> Target:
    """The target of one image from a record ``{"image_id": int, "annotations": [...]}``.

    Args:
        record: each annotation has ``bbox`` [x_min, y_min, width, height], ``category_id``, ``area``, and optionally
            ``iscrowd``, ``keypoints`` and an ``id``; with masks also ``segmentation``, polygons or a run-length encoding.
        size: size of the image.
        with_masks: whether to make ``masks``.
        name: the record's name in messages until its image id is known.

    Returns:
        A dict, for the N annotations that are not a crowd and whose box is not empty after clipping to the image:

        - ``image_id`` int64 (1,), ``orig_size`` int64 (2,), (height, width);
        - ``class_labels`` int64 (N,), ``area`` float32 (N,), ``iscrowd`` int64 (N,), always 0;
        - ``boxes`` float32 (N, 4), (x_min, y_min, x_max, y_max), pixels;
        - ``keypoints`` float32 (N * K, 3), (x, y, visibility), if there are any; (0, 3 * K) when no box is left;
        - ``masks`` bool (N, height, width), with `with_masks`; uint8 when there is no annotation.

    Raises:
        AnnotationError: a field is missing or malformed.
        BackendError: a polygon must become a mask and pycocotools is not installed.
    """
    record = checks.record(record, name)
    image = checks.image_name(record, name)
    checks.refuse_other_format(record, image, "coco_detection", "annotations", "segments_info")

    # The annotations that are not a crowd, with the names that messages use
    objects = []
    for index, item in enumerate(checks.records(record, "annotations", image)):
        where = f"{image}, annotations[{index}]"
        if "iscrowd" not in item or checks.crowd_flag(item, where) == 0:
            objects.append((where, item))

    # Boxes as corners, clipped to the image
    height, width = size
    boxes = np.asarray([checks.box(item, where) for where, item in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)

    # The fields of the target
    target: Target = {
        "image_id": np.asarray([record["image_id"]], dtype=np.int64),
        "class_labels": np.asarray([checks.integer(item, "category_id", where) for where, item in objects], np.int64)[keep],
        "boxes": boxes[keep],
        "area": np.asarray([checks.area(item, where) for where, item in objects], dtype=np.float32)[keep],
        "iscrowd": np.zeros(int(keep.sum()), dtype=np.int64),
        "orig_size": np.asarray(size, dtype=np.int64),
    }
    if any("keypoints" in item for _, item in objects):
        keypoints = _keypoints(objects)[keep]
        target["keypoints"] = keypoints.reshape(-1, 3) if len(keypoints) else keypoints
    if with_masks:
        require_at_most(
            "batch_pixels",
            len(objects) * height * width,
            f"{image}: pixels of the masks of all annotations",
            AnnotationError,
        )
        masks = [_mask(item, size, where) for where, item in objects]
        target["masks"] = np.stack(masks)[keep] if masks else np.zeros((0, height, width), dtype=np.uint8)
    return target


def _keypoints(objects: list[tuple[str, Mapping[str, Any]]]) -> np.ndarray:
    """float32 (N, 3 * K)."""
    rows: list[list[float]] = []
    for where, item in objects:
        if "keypoints" not in item:
            raise AnnotationError(f"{where}: no keypoints, which other annotations have: expected all or none")
        row = checks.keypoints(item, where)
        if rows and len(row) != len(rows[0]):
            raise AnnotationError(
                f"{where}: keypoints has {len(row)} numbers: expected {len(rows[0])}, as in the first annotation"
            )
        rows.append(row)
    return np.asarray(rows, dtype=np.float32)


def _mask(item: Mapping[str, Any], size: Size, where: str) -> np.ndarray:
    """bool (height, width) from the `segmentation` of one annotation."""
    value = checks.field(item, "segmentation", where)
    if isinstance(value, Mapping):
        return checked_rle(value, size, where).astype(bool)
    if not isinstance(value, (list, tuple)):
        raise AnnotationError(
            f"{where}: segmentation is a {type(value).__name__}: expected a list of polygons or a run-length encoding"
        )
    return _rasterize(checks.polygons(value, size, where), size)


def checked_rle(value: Mapping[str, Any], size: Size, where: str) -> np.ndarray:
    """`decode_rle` of an annotation's segmentation, with errors that begin with `where`."""
    try:
        return decode_rle(value, size)
    except AnnotationError as error:
        raise AnnotationError(f"{where}: segmentation: {error}") from error


def _rasterize(polygons: list[list[float]], size: Size) -> np.ndarray:
    """bool (height, width): the union of the polygons, with the pixel rule of COCO's own code."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise missing_extra("pycocotools", "coco") from error
    # It is decoded here, because pycocotools' own decode makes numpy 2 warn.
    return decode_rle(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)
