"""Checks of single fields of COCO annotations. Every function returns the checked value or raises AnnotationError.

`where` names the record in messages, for example "image 42, annotations[3]". Keys that nobody asks for are ignored: COCO
files have many of them (caption, license, score). A misspelled key is found because the required key is then missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.processing.rle import require_mask_pixels

# The sum of two such numbers is finite in float32, so x + width never overflows.
MAX_NUMBER = 1e38
# How far a polygon may reach beyond its image: by the image's own size, and by so many pixels where that is less. COCO's
# polygons end a pixel outside; those of an object that was cropped may go on. What is farther out is of another image.
LEAST_OVERHANG = 1000.0
_FARTHEST = 4e8  # pixels; COCO's own code has five steps for each, as numbers of 32 bits
POINTS_OF_A_POLYGON = 3
_TOLD = 8  # values of a list in a message
_DRIVE = re.compile(r"[A-Za-z]:")  # of Windows


def field(record: Mapping[str, Any], name: str, where: str) -> Any:
    """`record[name]`. If it is missing, the error lists the keys that are there."""
    if name in record:
        return record[name]
    found = ", ".join(sorted(map(str, record))) or "none"
    raise AnnotationError(f"{where}: no {name}; expected that key, found {found:.200}; add it, or correct its spelling")


def record(value: Any, where: str) -> Mapping[str, Any]:
    """`value` if it is a dict."""
    if not isinstance(value, Mapping):
        raise AnnotationError(f"{where} is a {type(value).__name__}: expected a dict; pass the records of the COCO file")
    return value


def records(parent: Mapping[str, Any], name: str, where: str) -> list[Mapping[str, Any]]:
    """The list of dicts under `name`. Their ids, which are optional, must differ."""
    values = field(parent, name, where)
    if not isinstance(values, (list, tuple)):
        raise AnnotationError(f"{where}: {name} is a {type(values).__name__}: expected a list of dicts, empty for none")
    checked = [record(value, f"{where}, {name}[{index}]") for index, value in enumerate(values)]
    seen: dict[int, int] = {}
    for index, item in enumerate(checked):
        if item.get("id") is None:
            continue
        identity = integer(item, "id", f"{where}, {name}[{index}]")
        if identity in seen:
            raise AnnotationError(
                f"{where}: {name}[{seen[identity]}] and {name}[{index}] both have id {identity}: expected every id once; "
                "remove the repeated record, or renumber it"
            )
        seen[identity] = index
    return checked


def image_name(record: Mapping[str, Any], fallback: str) -> str:
    """The name of the image in messages, from its checked `image_id`."""
    return f"image {integer(record, 'image_id', fallback)}"


def refuse_other_format(record: Mapping[str, Any], image: str, format_: str, wanted: str, other: str) -> None:
    """Refuses a record that has the list of the other format and not that of its own."""
    if wanted not in record and other in record:
        right = "coco_panoptic" if format_ == "coco_detection" else "coco_detection"
        raise AnnotationError(
            f"{image}: no {wanted}, but {other}: expected a record of format {format_}, this is one of {right}; "
            f"set format={right!r}, or pass the other record"
        )


def integer(parent: Mapping[str, Any], name: str, where: str) -> int:
    """An integer that fits into int64."""
    value = field(parent, name, where)
    if not isinstance(value, Integral) or isinstance(value, bool) or not -(2**63) <= int(value) < 2**63:
        raise AnnotationError(f"{where}: {name} is {told(value)}: expected an integer of 64 bits; convert it with int()")
    return int(value)


def crowd_flag(parent: Mapping[str, Any], where: str) -> int:
    """`iscrowd`: 0 or 1."""
    value = field(parent, "iscrowd", where)
    if not isinstance(value, (Integral, np.bool_)) or int(value) not in (0, 1):
        raise AnnotationError(f"{where}: iscrowd is {told(value)}: expected 0 or 1")
    return int(value)


def area(parent: Mapping[str, Any], where: str) -> float:
    """`area`: a number of pixels, 0 or more."""
    value = field(parent, "area", where)
    if not _is_number(value) or not 0 <= value <= MAX_NUMBER:
        raise AnnotationError(f"{where}: area is {told(value)}: expected a finite number of pixels, 0 or more")
    return float(value)


def box(parent: Mapping[str, Any], where: str) -> list[float]:
    """`bbox`: [x_min, y_min, width, height] in pixels, width and height above 0. It may extend beyond the image."""
    numbers = four_numbers(parent, where)
    if min(numbers[2:]) <= 0:
        raise AnnotationError(
            f"{where}: bbox {told(parent['bbox'])} has no area: expected [x_min, y_min, width, height] with a width and "
            "height above 0; remove that annotation, or convert corners to a width and height"
        )
    return numbers


def four_numbers(parent: Mapping[str, Any], where: str) -> list[float]:
    """`bbox` as four finite numbers; the box may be empty."""
    value = field(parent, "bbox", where)
    numbers = _numbers(value, MAX_NUMBER)
    if numbers is None or len(numbers) != 4:
        raise AnnotationError(f"{where}: bbox is {told(value)}: expected four finite numbers, [x_min, y_min, width, height]")
    return numbers


def keypoints(parent: Mapping[str, Any], where: str) -> list[float]:
    """`keypoints`: a flat list x, y, visibility, x, y, visibility, ..."""
    value = field(parent, "keypoints", where)
    numbers = _numbers(value, MAX_NUMBER)
    if numbers is None or not numbers or len(numbers) % 3:
        raise AnnotationError(
            f"{where}: keypoints is {told(value)}: expected a flat list of finite numbers, three (x, y, visibility) a point"
        )
    return numbers


def polygons(value: Sequence[Any], size: tuple[int, int], where: str) -> list[list[float]]:
    """`segmentation` as polygons, each a flat list x, y, x, y, ... of at least three points.

    Drawing them takes memory in proportion to the length of their edges, even outside of the image, so that is bounded.

    Args:
        value: a list of lists.
        size: (height, width) of the image.
        where: names the record in messages.
    """
    if len(value) == 0:
        raise AnnotationError(f"{where}: segmentation has no polygon: expected at least one, or a run-length encoding")
    require_mask_pixels(*size, f"{where}: the number of pixels of the image")
    points = sum(len(polygon) for polygon in value if isinstance(polygon, (list, tuple, np.ndarray))) // 2
    require_at_most("points", points, f"{where}: segmentation: the number of points", AnnotationError)
    checked = []
    outline = 0.0
    for index, polygon in enumerate(value):
        name = f"{where}: segmentation[{index}]"
        numbers = _numbers(polygon, MAX_NUMBER)
        if numbers is None:
            raise AnnotationError(
                f"{name} is {told(polygon)}: expected a flat list of finite numbers x, y, x, y, ... in pixels"
            )
        if len(numbers) < 2 * POINTS_OF_A_POLYGON or len(numbers) % 2:
            raise AnnotationError(
                f"{name} has {len(numbers)} numbers: expected an even count of at least {2 * POINTS_OF_A_POLYGON} "
                "(x, y, x, y, x, y); remove that polygon, or complete it"
            )
        corners = np.array(numbers).reshape(-1, 2)
        _require_near(corners, size, name)
        outline += float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
        checked.append(numbers)
    require_at_most("outline", round(outline), f"{where}: segmentation: the length of its edges in pixels", AnnotationError)
    return checked


def _require_near(corners: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Refuses corners, float64 (N, 2), that are far outside of the image."""
    for axis, (letter, edge) in enumerate((("x", size[1]), ("y", size[0]))):
        overhang = min(max(float(edge), LEAST_OVERHANG), _FARTHEST - edge)
        low, high = float(corners[:, axis].min()), float(corners[:, axis].max())
        if low < -overhang or high > edge + overhang:
            found = low if low < -overhang else high
            raise AnnotationError(
                f"{name}: {letter} is {found:g}: expected {-overhang:g} to {edge + overhang:g} in an image of "
                f"{size[1]}x{size[0]} pixels; correct the polygon, or the size of the image"
            )


def image_size(parent: Mapping[str, Any], where: str) -> tuple[int, int]:
    """(height, width) of an image's record: at least 1, and not more pixels than the limit."""
    height, width = (integer(parent, side, where) for side in ("height", "width"))
    for side, found in (("height", height), ("width", width)):
        if found < 1:
            raise AnnotationError(f"{where}: {side} is {found}: expected at least 1 pixel")
    require_at_most("pixels", height * width, f"{where}: height * width", AnnotationError)
    return height, width


def file_name(parent: Mapping[str, Any], where: str, what: str = "a picture") -> str:
    """`file_name`: text that can be the name of a file."""
    value = field(parent, "file_name", where)
    if not isinstance(value, str) or not value:
        raise AnnotationError(f"{where}: file_name is {told(value)}: expected the name of {what}")
    if "\0" in value:
        raise AnnotationError(f"{where}: file_name is {told(value)}: it has a null byte, as no file's name has")
    return value


def file_inside(parent: Mapping[str, Any], where: str, what: str = "a picture") -> str:
    """`file_name` that does not lead out of its folder."""
    value = file_name(parent, where, what)
    if leads_out(value):
        raise AnnotationError(
            f"{where}: file_name is {told(value)}: expected the path of {what} in its folder: without .. and not absolute"
        )
    return value


def leads_out(name: str) -> bool:
    """Whether a name may be that of a file outside of the folder in which it is looked for."""
    plain = name.replace("\\", "/")
    return os.path.isabs(name) or plain.startswith("/") or _DRIVE.match(plain) is not None or ".." in plain.split("/")


def told(value: Any) -> str:
    """A value for messages: a short list of plain values as it is, anything else as `shown` has it."""
    nested = isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, dict)) for item in value)
    if isinstance(value, (list, tuple)) and len(value) <= _TOLD and not nested:
        return f"[{', '.join(map(_plain, value))}]"
    return _plain(value)


def _plain(value: Any) -> str:
    return repr(value) if value is None or (isinstance(value, int) and abs(value) < 10**20) else shown(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _numbers(value: Any, limit: float) -> Optional[list[float]]:
    """A flat list of finite numbers whose size is at most `limit`; None if the value is anything else."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return None
    if not all(_is_number(item) and abs(item) <= limit for item in value):
        return None
    return [float(item) for item in value]
