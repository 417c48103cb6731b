"""The sizes that images are resized and padded to.

Source: the size rules of `DetrImageProcessor` in transformers 4.57.6, including where they round and where they
truncate. {longest_edge} alone, which Table Transformer's files have and transformers refuses, follows `MaxResize` of
microsoft/table-transformer. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import ImageError, OptionError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.processing.option_values import as_count

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

    Raises OptionError for unknown keys, and for values that are not positive integers or above the limit `edge`.
    """
    if isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif not isinstance(size, Mapping):
        size = {"shortest_edge": size} if max_size is None else {"shortest_edge": size, "longest_edge": max_size}
    if set(size) not in _SIZE_KEYS:
        keys = ", ".join(shown(key) for key in list(size)[:4])
        raise OptionError(f"size has the keys {keys or '(none)'}; expected {_SIZE_FORMS}")
    unlimited = {"longest_edge": None} if size.get("longest_edge", 0) is None else {}
    return {**_positive({k: v for k, v in size.items() if k not in unlimited}, "size"), **unlimited}


def as_pad_size(pad_size: Any) -> Optional[SizeDict]:
    """`pad_size` as a checked {"height", "width"} dict, or None. Raises OptionError for anything else."""
    if pad_size is None:
        return None
    if not isinstance(pad_size, Mapping) or set(pad_size) != {"height", "width"}:
        raise OptionError(f"pad_size is {shown(pad_size)}; expected None or a dict with the keys height and width")
    return _positive(pad_size, "pad_size")


def _positive(values: Mapping, name: str) -> SizeDict:
    checked = {key: as_count(value, f"{name}[{key!r}]") for key, value in values.items()}
    for key, value in checked.items():
        require_at_most("edge", value, f"{name}[{key!r}]", OptionError)
    return checked


def require_pixels(count: int, height: int, width: int) -> None:
    """Refuses a batch of more pixels than the limits allow, before its memory is taken.

    Raises ImageError if an image is longer than `edge`, or all are more than `batch_pixels`.
    """
    require_at_most("edge", max(height, width), f"the longer side of an image of {width}x{height} pixels", ImageError)
    what = f"the number of pixels of a batch of {count} images of {width}x{height}"
    require_at_most("batch_pixels", count * height * width, what, ImageError)


def output_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) that an image of `height` x `width` pixels is resized to; `size` is a dict from `as_size`.

    - shortest_edge, longest_edge: the aspect ratio stays. The shorter side becomes `shortest_edge`, unless the other side
      would become longer than `longest_edge`.
    - longest_edge alone: the aspect ratio stays. The longer side becomes `longest_edge`; small images are enlarged.
    - max_height, max_width: the aspect ratio stays, and the result is the largest that fits; small images are enlarged.
    - height, width: exactly this size.

    Raises OptionError if `size` is only the shortest edge, and ImageError if a thin image would have no pixels left, or more
    than the limits `edge` and `batch_pixels` allow.
    """
    result = _output_size(height, width, size)
    require_pixels(1, *result)
    return result


def _output_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
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
        raise OptionError(f"cannot resize to {dict(size)}: expected {_SIZE_FORMS}")
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
    """(height, width) of the batch: `pad_size`, or the largest of `sizes`.

    Raises ImageError if an image does not fit, or the batch has more pixels than the limit `batch_pixels`.
    """
    height, width = (max(edge) for edge in zip(*sizes))
    if pad_size is None:
        require_pixels(len(sizes), height, width)
        return height, width
    if height > pad_size["height"] or width > pad_size["width"]:
        raise ImageError(
            f"pad_size {pad_size['width']}x{pad_size['height']} is smaller than the batch, {width}x{height} pixels: "
            "enlarge pad_size, or reduce size"
        )
    require_pixels(len(sizes), pad_size["height"], pad_size["width"])
    return pad_size["height"], pad_size["width"]
