"""Turns one COCO panoptic record and its PNG into one training target, and reads the segment ids of such PNGs.

Source: `prepare_coco_panoptic_annotation`, `masks_to_boxes`, `rgb_to_id` and `id_to_rgb` of transformers 4.57.6; keys,
dtypes, order and values are the same. What differs, on purpose: a malformed record, a missing PNG and a segment without
pixels raise an AnnotationError that names the image and the field; upstream raises KeyError, or makes a box of 1e8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import AnnotationError, ImageError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.processing.annotations.detection import Size, Target, checks
from detr_export.runtimes.processing.images import decode_complete, opened_image

_NOTHING = 1e8  # the minima that `masks_to_boxes` gives an empty mask


def prepare_panoptic(
    record: Mapping[str, Any],
    size: Size,
    with_masks: bool,
    masks_path: Union[str, os.PathLike, None],
    name: str = "the annotation",
) -> Target:
    """The target of one image from a record ``{"image_id": int, "file_name": str, "segments_info": [...]}``.

    Args:
        record: each segment has ``id``, ``category_id``, ``iscrowd`` and ``area``; crowds are kept.
        size: size of the image.
        with_masks: whether to put ``masks`` into the target.
        masks_path: the folder of ``file_name``, an RGB PNG whose pixels are segment ids as `id_to_rgb` writes them.
        name: the record's name in messages until its image id is known.

    Returns:
        A dict, for N segments:

        - ``image_id`` int64 (1,), ``size`` and ``orig_size`` int64 (2,), (height, width);
        - ``masks`` uint8 (N, height, width), 0 or 1, with `with_masks`;
        - ``boxes`` float32 (N, 4), see `masks_to_boxes`; float64 for N = 0, as upstream;
        - ``class_labels`` int64 (N,), ``iscrowd`` int64 (N,), ``area`` float32 (N,).

    Raises:
        AnnotationError: a field or the PNG is missing, malformed or of another size, or a segment is not in the PNG.
    """
    record = checks.record(record, name)
    image = checks.image_name(record, name)
    checks.refuse_other_format(record, image, "coco_panoptic", "segments_info", "annotations")
    segments = [(f"{image}, segments_info[{i}]", s) for i, s in enumerate(checks.records(record, "segments_info", image))]

    # One mask for each segment, from the PNG
    ids = [checks.integer(segment, "id", where) for where, segment in segments]
    path = panoptic_path(record, image, masks_path)
    require_at_most(
        "batch_pixels", len(ids) * size[0] * size[1], f"{image}: pixels of the masks of all segments", AnnotationError
    )
    pixels = read_segment_ids(path, size, image)
    masks = (pixels == np.asarray(ids, dtype=np.int64)[:, None, None]).astype(np.uint8)
    for (where, _), id_, there in zip(segments, ids, masks.any(axis=(1, 2))):
        if not there:
            raise AnnotationError(
                f"{where}: id is {id_}, but no pixel of {path} has it: expected every segment in the PNG; remove that "
                "segment, or check that file_name is of this image"
            )

    # The fields of the target
    target: Target = {
        "image_id": np.asarray([record["image_id"]], dtype=np.int64),
        "size": np.asarray(size, dtype=np.int64),
        "orig_size": np.asarray(size, dtype=np.int64),
    }
    if with_masks:
        target["masks"] = masks
    target["boxes"] = masks_to_boxes(masks)
    target["class_labels"] = np.asarray([checks.integer(s, "category_id", where) for where, s in segments], dtype=np.int64)
    target["iscrowd"] = np.asarray([checks.crowd_flag(s, where) for where, s in segments], dtype=np.int64)
    target["area"] = np.asarray([checks.area(s, where) for where, s in segments], dtype=np.float32)
    return target


def masks_to_boxes(masks: np.ndarray) -> np.ndarray:
    """The box around each mask.

    Args:
        masks: (N, height, width), bool or zeros and ones.

    Returns:
        float32 (N, 4), (x_min, y_min, x_max, y_max): the columns and rows of the first and the last set pixel, so the box of
        a single pixel has no extent. The minima of an empty mask are 1e8 and its maxima 0. If there are no pixels at all,
        as with N = 0, the result is float64 (0, 4). All this is as upstream has it.
    """
    if masks.size == 0:
        return np.zeros((0, 4))
    boxes = np.empty((len(masks), 4), dtype=np.float32)
    for axis, reduced in ((0, 1), (1, 2)):  # x from the columns that have a pixel, y from the rows
        set_ = (masks != 0).any(axis=reduced)
        some = set_.any(axis=1)
        boxes[:, axis] = np.where(some, set_.argmax(axis=1), _NOTHING)
        boxes[:, axis + 2] = np.where(some, set_.shape[1] - 1 - set_[:, ::-1].argmax(axis=1), 0)
    return boxes


def rgb_to_id(color: Union[np.ndarray, Sequence[int]]) -> Any:
    """The segment id of a colour: red + 256 * green + 65536 * blue.

    Args:
        color: an image (height, width, 3), or the three numbers of one colour.

    Returns:
        For an image (height, width), int32 if the image is uint8 and otherwise of its own dtype; for one colour an int.
    """
    if isinstance(color, np.ndarray) and color.ndim == 3:
        image = color.astype(np.int32) if color.dtype == np.uint8 else color
        return image[..., 0] + 256 * image[..., 1] + 65536 * image[..., 2]
    red, green, blue = (int(part) for part in color[:3])
    return red + 256 * green + 65536 * blue


def id_to_rgb(id_map: Union[np.ndarray, int]) -> Any:
    """The inverse of `rgb_to_id`: uint8 (..., 3) for an array of ids, a list of three int for one id."""
    if isinstance(id_map, np.ndarray):
        return np.stack([id_map // 256**place % 256 for place in range(3)], axis=-1).astype(np.uint8)
    return [id_map // 256**place % 256 for place in range(3)]


def panoptic_path(record: Mapping[str, Any], image: str, masks_path: Union[str, os.PathLike, None]) -> Path:
    """The path of the PNG of a record; `image` is the name of the image in messages.

    Raises:
        AnnotationError: the record has no file_name or one outside of the folder, or `masks_path` is no folder's name.
    """
    file_name = checks.file_inside(record, image, "the panoptic PNG")
    if not isinstance(masks_path, (str, os.PathLike)):
        raise AnnotationError(
            f"{image}: masks_path is {masks_path!r:.80}: expected the folder that has {file_name}; "
            "pass masks_path to preprocess"
        )
    return Path(masks_path) / file_name


def read_segment_ids(path: Path, size: Size, image: str) -> np.ndarray:
    """int32 (height, width), the segment id at every pixel of a panoptic PNG; 0 means no segment.

    Raises:
        AnnotationError: the PNG is missing, damaged, of another kind or of another size; the message starts with `image`.
    """
    with _opened(path, size, image) as picture:
        decode_complete(picture, str(path))
        pixels = np.asarray(picture)
    return rgb_to_id(pixels)


def require_segment_ids(path: Path, size: Size, image: str) -> None:
    """`read_segment_ids` without decoding the pixels: what the PNG's header shows to be wrong raises the same error."""
    with _opened(path, size, image):
        pass


@contextmanager
def _opened(path: Path, size: Size, image: str) -> Iterator[Image.Image]:
    if not os.path.exists(path):
        raise AnnotationError(f"{image}: {path} does not exist: expected its panoptic PNG; check masks_path and file_name")
    try:
        with opened_image(path) as picture:
            mode, found = picture.mode, (picture.height, picture.width)
            if mode not in ("RGB", "RGBA"):
                raise AnnotationError(
                    f"{image}: {path} has mode {mode}: expected an RGB PNG, the id spread over three bytes"
                )
            if found != size:
                raise AnnotationError(
                    f"{image}: {path} is {found[1]}x{found[0]} pixels: expected the {size[1]}x{size[0]} of the image; "
                    "check that both are of the same image"
                )
            yield picture
    except ImageError as error:
        raise AnnotationError(f"{image}: cannot read {path} ({error}): expected an RGB PNG; copy it again") from error
