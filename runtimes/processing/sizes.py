"""The sizes that images are resized and padded to.

Source: the size rules of `DetrImageProcessor` in transformers 4.57.6, including where they round and where they
truncate. {longest_edge} alone, which Table Transformer's files have and transformers refuses, follows `MaxResize` of
microsoft/table-transformer. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Optional

from detr_export.runtimes.errors import ImageError, OptionError

SizeDict = dict  # str -> int; "longest_edge" may be None, for no limit

_SIZE_KEYS = (
    {"shortest_edge", "longest_edge"},
    {"height", "width"},
    {"max_height", "max_width"},
    {"longest_edge"},
    {"shortest_edge"},  # old configurations have it; it can be stored, but no image can be resized to it
)
_SIZE_FORMS = "{shortest_edge, longest_edge}, {longest_edge}, {height, width} or {max_height, max_width}"


def as_size(size: Any, max_size: Optional[int] = None) -> SizeDict:
    """`size` as a checked dict. An int is the shortest edge, and `max_size` then is the longest; a pair is (height, width).

    Raises OptionError for unknown keys and for values that are not positive integers.
    """
    if isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif not isinstance(size, Mapping):
        size = {"shortest_edge": size} if max_size is None else {"shortest_edge": size, "longest_edge": max_size}
    if set(size) not in _SIZE_KEYS:
        raise OptionError(f"size has the keys {sorted(map(str, size))}: expected {_SIZE_FORMS}")
    unlimited = {"longest_edge": None} if size.get("longest_edge", 0) is None else {}
    return {**_positive({k: v for k, v in size.items() if k not in unlimited}, "size"), **unlimited}


def as_pad_size(pad_size: Any) -> Optional[SizeDict]:
    """`pad_size` as a checked {"height", "width"} dict, or None. Raises OptionError for anything else."""
    if pad_size is None:
        return None
    if not isinstance(pad_size, Mapping) or set(pad_size) != {"height", "width"}:
        raise OptionError(f"pad_size={pad_size!r}: expected None or a dict with the keys height and width")
    return _positive(pad_size, "pad_size")


def _positive(values: Mapping, name: str) -> SizeDict:
    checked = {}
    for key, value in values.items():
        try:
            checked[key] = operator.index(value)
        except TypeError as error:
            raise OptionError(f"{name}[{key!r}]={value!r}: expected a positive integer") from error
        if checked[key] < 1:
            raise OptionError(f"{name}[{key!r}]={value!r}: expected a positive integer")
    return checked


def output_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) that an image of `height` x `width` pixels is resized to; `size` is a dict from `as_size`.

    - shortest_edge, longest_edge: the aspect ratio stays. The shorter side becomes `shortest_edge`, unless the other side
      would become longer than `longest_edge`.
    - longest_edge alone: the aspect ratio stays. The longer side becomes `longest_edge`; small images are enlarged.
    - max_height, max_width: the aspect ratio stays, and the result is the largest that fits; small images are enlarged.
    - height, width: exactly this size.

    Raises OptionError if `size` is only the shortest edge, and ImageError if a thin image would have no pixels left.
    """
    keys = set(size)
    if keys == {"height", "width"}:
        return size["height"], size["width"]
    if keys == {"max_height", "max_width"}:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        result = (int(height * scale), int(width * scale))
    elif keys == {"shortest_edge", "longest_edge"}:
        result = _edge_size(height, width, size["shortest_edge"], size["longest_edge"])
    elif keys == {"longest_edge"} and size["longest_edge"] is not None:
        scale = size["longest_edge"] / max(height, width)
        result = (round(scale * height), round(scale * width))
    else:
        raise OptionError(f"cannot resize to {size}: expected {_SIZE_FORMS}")
    if min(result) < 1:
        raise ImageError(
            f"image of {width}x{height} pixels is too thin: by the rule {_told(size)} it would be resized to "
            f"{result[1]}x{result[0]}; crop it, or set size={{'height': ..., 'width': ...}}"
        )
    return result


def _told(size: SizeDict) -> str:
    return ", ".join(f"{key} {value}" for key, value in size.items())


def _edge_size(height: int, width: int, shortest: int, longest: Optional[int]) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    wanted: float = shortest  # not rounded, because the long edge is computed from it
    if longest is not None and long / short * shortest > longest:
        wanted = longest * short / long
        shortest = round(wanted)
    if short == shortest:
        return height, width
    if width < height:
        return int(wanted * height / width), shortest
    return shortest, int(wanted * width / height)


def padded_size(sizes: list[tuple[int, int]], pad_size: Optional[SizeDict]) -> tuple[int, int]:
    """(height, width) of the batch: `pad_size`, or the largest of `sizes`. Raises ImageError if an image does not fit."""
    height, width = (max(edge) for edge in zip(*sizes))
    if pad_size is None:
        return height, width
    if height > pad_size["height"] or width > pad_size["width"]:
        raise ImageError(
            f"pad_size {pad_size['width']}x{pad_size['height']} is smaller than the batch, {width}x{height} pixels: "
            "enlarge pad_size, or reduce size"
        )
    return pad_size["height"], pad_size["width"]
