"""Checks of single fields of COCO annotations. Every function returns the checked value or raises AnnotationError.

`where` names the record in messages, for example "image 42, annotations[3]". Keys that nobody asks for are ignored: COCO
files have many of them (caption, license, score). A misspelled key is found because the required key is then missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.errors import AnnotationError

# The sum of two such numbers is finite in float32, so x + width never overflows.
MAX_NUMBER = 1e38
# A polygon needs memory in proportion to the length of its edges, even outside of the image.
MAX_POLYGON_COORDINATE = 1e5
POINTS_OF_A_POLYGON = 3


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
        raise AnnotationError(f"{where}: {name} is {value!r:.80}: expected an integer of 64 bits; convert it with int()")
    return int(value)


def crowd_flag(parent: Mapping[str, Any], where: str) -> int:
    """`iscrowd`: 0 or 1."""
    value = field(parent, "iscrowd", where)
    if not isinstance(value, (Integral, np.bool_)) or int(value) not in (0, 1):
        raise AnnotationError(f"{where}: iscrowd is {value!r:.80}: expected 0 or 1")
    return int(value)


def area(parent: Mapping[str, Any], where: str) -> float:
    """`area`: a number of pixels, 0 or more."""
    value = field(parent, "area", where)
    if not _is_number(value) or not 0 <= value <= MAX_NUMBER:
        raise AnnotationError(f"{where}: area is {value!r:.80}: expected a finite number of pixels, 0 or more")
    return float(value)


def box(parent: Mapping[str, Any], where: str) -> list[float]:
    """`bbox`: [x_min, y_min, width, height] in pixels, width and height above 0. It may extend beyond the image."""
    value = field(parent, "bbox", where)
    numbers = _numbers(value, MAX_NUMBER)
    if numbers is None or len(numbers) != 4:
        raise AnnotationError(f"{where}: bbox is {value!r:.80}: expected four finite numbers, [x_min, y_min, width, height]")
    if min(numbers[2:]) <= 0:
        raise AnnotationError(
            f"{where}: bbox {value!r:.80} has no area: expected [x_min, y_min, width, height] with a width and height above "
            "0; remove that annotation, or convert corners to a width and height"
        )
    return numbers


def keypoints(parent: Mapping[str, Any], where: str) -> list[float]:
    """`keypoints`: a flat list x, y, visibility, x, y, visibility, ..."""
    value = field(parent, "keypoints", where)
    numbers = _numbers(value, MAX_NUMBER)
    if numbers is None or not numbers or len(numbers) % 3:
        raise AnnotationError(
            f"{where}: keypoints is {value!r:.80}: expected a flat list of finite numbers, three (x, y, visibility) a point"
        )
    return numbers


def polygons(value: Sequence[Any], where: str) -> list[list[float]]:
    """`segmentation` as polygons, each a flat list x, y, x, y, ... of at least three points."""
    if len(value) == 0:
        raise AnnotationError(f"{where}: segmentation has no polygon: expected at least one, or a run-length encoding")
    checked = []
    for index, polygon in enumerate(value):
        name = f"{where}: segmentation[{index}]"
        numbers = _numbers(polygon, MAX_POLYGON_COORDINATE)
        if numbers is None:
            raise AnnotationError(
                f"{name} is {polygon!r:.80}: expected a flat list of finite numbers x, y, x, y, ... in pixels, "
                f"none beyond {MAX_POLYGON_COORDINATE:.0f}"
            )
        if len(numbers) < 2 * POINTS_OF_A_POLYGON or len(numbers) % 2:
            raise AnnotationError(
                f"{name} has {len(numbers)} numbers: expected an even count of at least {2 * POINTS_OF_A_POLYGON} "
                "(x, y, x, y, x, y); remove that polygon, or complete it"
            )
        checked.append(numbers)
    return checked


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
