"""Resizes images with Pillow, in 8 bit.

Source: `resize` in transformers 4.57.6, as the PIL-based `DetrImageProcessor` calls it. The numbers are equal bit for bit.
"""

from __future__ import annotations

import operator
from typing import Any, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import ImageError, OptionError
from detr_export.runtimes.processing.resizing.strips import ResizedFrame
from detr_export.runtimes.processing.transforms import LAST, rescale, to_layout


def as_resample(resample: Any) -> int:
    """`resample` as the number of one of Pillow's filters. Raises OptionError for anything else."""
    known = {int(item): item.name for item in sorted(Image.Resampling)}
    try:
        number = -1 if isinstance(resample, (bool, np.bool_)) else operator.index(resample)
    except TypeError:
        number = -1
    if number not in known:
        names = ", ".join(f"{number} {name}" for number, name in known.items())
        raise OptionError(f"resample is {shown(resample)}; expected a PIL.Image.Resampling filter ({names})")
    return number


def resize(
    image: Union[np.ndarray, Image.Image], size: tuple[int, int], resample: int, layout: str
) -> Union[np.ndarray, ResizedFrame]:
    """Resizes with Pillow in 8 bit. The layout stays the same; a PIL image is channels_last.

    The result is uint8, or float32 in [0, 1] if the input holds fractions in [0, 1]. Where it is channels_last uint8 with
    three channels, it is not resized yet, so that a batch can do that in threads, with less memory.

    Raises ImageError for values that are neither fractions in [0, 1] nor whole numbers in 0..255, and for a number of
    channels that Pillow does not know.
    """
    height, width = size
    if isinstance(image, Image.Image) and image.mode == "RGB":  # saves two copies, with the same pixels
        return ResizedFrame(image, height, width, resample)

    channels_last = to_layout(np.asarray(image), layout, LAST)
    bytes_, stretched = _to_uint8(channels_last)
    if bytes_.shape[2] == 3:
        frame = ResizedFrame(bytes_, height, width, resample)
        if layout == LAST and not stretched:
            return frame
        resized = np.array(frame.image())
    else:
        try:
            picture = Image.fromarray(np.ascontiguousarray(bytes_[..., 0] if bytes_.shape[2] == 1 else bytes_))
        except TypeError as error:
            raise ImageError(f"cannot resize an image of {channels_last.shape[2]} channels: expected 1 to 4") from error
        resized = np.array(picture.resize((width, height), resample=resample))
    resized = to_layout(resized if resized.ndim == 3 else resized[..., None], LAST, layout)
    return rescale(resized, 1 / 255) if stretched else resized


def _to_uint8(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """The image as uint8, and whether values in [0, 1] were stretched to 0..255 for that."""
    if array.dtype == np.uint8:
        return array, False
    low, high = array.min(), array.max()
    whole = bool(low >= 0 and high <= 255 and np.allclose(array, array.astype(int)))
    if not whole and (low < 0 or high > 1):
        raise ImageError(
            f"array of dtype {array.dtype} has values from {low} to {high}: expected whole numbers in 0..255 or "
            "fractions in [0, 1] to resize; scale or round it first, or set do_resize=False"
        )
    return (array if whole else rescale(array, 255)).astype(np.uint8), not whole
