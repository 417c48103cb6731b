"""Turns whatever a caller passes as images into checked images of one layout, and arrays into one padded batch.

A picture is a PIL image or a 3-D array. All arrays of a batch have the layout that `collect` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing.byte_scaling import exact, scale_bytes
from detr_export.runtimes.processing.images import decode_in_place
from detr_export.runtimes.processing.resizing.strips import ResizedFrame
from detr_export.runtimes.processing.threads import in_threads
from detr_export.runtimes.processing.torch_tensors import is_tensor, to_array
from detr_export.runtimes.processing.transforms import (
    FIRST,
    LAST,
    PixelScaling,
    as_layout,
    height_width,
    infer_layout,
    pad,
    to_layout,
)

Picture = Union[Image.Image, np.ndarray]
Resized = Union[Picture, ResizedFrame]


def collect(images: Any, input_data_format: Optional[str] = None) -> tuple[list[Picture], str]:
    """Flattens `images` into a list of checked pictures, and finds the layout that they share.

    `images` is a PIL image, a 3-D array, a 4-D array, or a list of these at any depth. PyTorch's tensors count as arrays.
    The layout is `input_data_format` if that is given. Otherwise the first picture decides: a PIL image is channels_last,
    and the shape of an array shows it.

    Raises ImageError for anything else, for pictures of different layouts, and for values that are not finite.
    """
    pictures = list(_flatten(images))
    if not pictures:
        raise ImageError("there are no images in the batch: expected at least one; pass an image or a list of them")
    layout = as_layout(input_data_format, "input_data_format")
    stated = layout is not None
    if layout is None:
        first = pictures[0]
        layout = LAST if isinstance(first, Image.Image) else infer_layout(first.shape)
    for index, picture in enumerate(pictures):
        if isinstance(picture, Image.Image):
            _check_pil(picture, index, layout, stated)
        else:
            _check_array(picture, index, layout, stated)
    return pictures, layout


def size_of(picture: Resized, layout: str) -> tuple[int, int]:
    """(height, width) in pixels."""
    if isinstance(picture, np.ndarray):
        return height_width(picture, layout)
    return picture.height, picture.width


def as_array(picture: Resized) -> np.ndarray:
    """The picture as an array of its own, in the layout of its batch."""
    return np.array(picture.image() if isinstance(picture, ResizedFrame) else picture)


def scale_and_pad(
    pictures: Sequence[Resized],
    layout: str,
    target: str,
    scaling: PixelScaling,
    padded: Optional[tuple[int, int]],
) -> Union[np.ndarray, list[np.ndarray]]:
    """Scales the values of pictures, pads them to `padded` (height, width) unless None, and lays them out as `target`.

    uint8 images, which resized images are, go straight into one 4-D array (see `byte_scaling`).
    Other images give a list of arrays. No result shares memory with the pictures.
    """
    sizes = {size_of(picture, layout) for picture in pictures}
    channels = {_channels(picture, layout) for picture in pictures}
    size = padded if padded is not None else next(iter(sizes))
    one_size = padded is not None or len(sizes) == 1
    in_bytes = all(not isinstance(picture, np.ndarray) or picture.dtype == np.uint8 for picture in pictures)
    if not (one_size and len(channels) == 1 and scaling.changes_pixels and in_bytes):
        scaled = [scaling.apply(as_array(picture), layout) for picture in pictures]
        return [to_layout(a if padded is None else pad(a, padded, layout), layout, target) for a in scaled]

    (count,) = channels
    table = scaling.table(count)
    steps = exact(scaling.steps(count), table)
    shape = (len(pictures), len(table), *size) if target == FIRST else (len(pictures), *size, len(table))
    batch = np.zeros(shape, dtype=table.dtype)

    scale = partial(scale_bytes, table=table, steps=steps)
    in_threads(lambda pair: _fill(pair[0], layout, to_layout(pair[1], target, FIRST), scale), list(zip(pictures, batch)))
    return batch


def stack(arrays: Union[np.ndarray, Sequence[np.ndarray]]) -> np.ndarray:
    """One (B, ...) array. Raises ImageError if the images differ in size."""
    if isinstance(arrays, np.ndarray):
        return arrays
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ImageError(
            f"images of shapes {', '.join(map(str, shapes))} do not stack: expected one shape; "
            "set do_pad=True, or return_tensors=None for a list"
        )
    return np.stack(arrays)


def _fill(picture: Resized, layout: str, out: np.ndarray, scale: Callable[[Iterable[np.ndarray], np.ndarray], None]) -> None:
    """Writes a scaled picture into the top left of `out`, (C, H, W)."""
    if isinstance(picture, np.ndarray):
        planes: Iterable[np.ndarray] = to_layout(picture, layout, FIRST)
    else:  # Pillow takes the channels apart faster than numpy does
        image = picture.image() if isinstance(picture, ResizedFrame) else picture
        planes = [np.asarray(band) for band in image.split()]
    scale(planes, out)


def _channels(picture: Resized, layout: str) -> int:
    if isinstance(picture, np.ndarray):
        return picture.shape[0 if layout == FIRST else 2]
    return len(picture.getbands()) if isinstance(picture, Image.Image) else 3


def _flatten(images: Any) -> Iterator[Picture]:
    if is_tensor(images):
        images = to_array(images)
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
        yield images
    elif isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4):
        for image in images:
            yield from _flatten(image)
    elif isinstance(images, np.ndarray):
        raise ImageError(
            f"array of shape {images.shape} is not an image: expected (H, W, 3) or (3, H, W); "
            "repeat a grey image over three channels"
        )
    else:
        raise ImageError(
            f"{type(images).__name__} is not an image: expected PIL images, arrays or tensors; open files with load_image"
        )


def _check_pil(picture: Image.Image, index: int, layout: str, stated: bool) -> None:
    name = f"image {index} (PIL, mode {picture.mode}, {picture.width}x{picture.height})"
    if layout == FIRST:
        raise ImageError(
            f"{name} is channels_last but the batch is channels_first: expected one layout; convert the arrays or "
            "the PIL images"
        )
    if 0 in picture.size:
        raise ImageError(f"{name} has no pixels: expected a width and height of at least 1; pass a real image")
    if picture.mode != "RGB" and not (stated and len(picture.getbands()) > 1):
        raise ImageError(f"{name} is not RGB: expected three channels; call .convert('RGB'), or load_image")
    decode_in_place(picture, name)


def _check_array(picture: np.ndarray, index: int, layout: str, stated: bool) -> None:
    name = f"image {index} (array of shape {picture.shape}, dtype {picture.dtype})"
    if picture.size == 0:
        raise ImageError(f"{name} has no pixels: expected a width and height of at least 1; pass a real image")
    if picture.dtype.kind not in "buif":
        raise ImageError(f"{name} does not hold numbers: expected uint8 or float; convert it with astype")
    if not stated and picture.shape[0 if layout == FIRST else 2] not in (1, 3):
        raise ImageError(
            f"{name} is not {layout} like image 0: expected one layout in a batch; transpose it, or process it apart"
        )
    if picture.dtype.kind == "f" and not np.isfinite(picture).all():
        what = "NaN" if np.isnan(picture).any() else "infinity"
        raise ImageError(f"{name} contains {what}: expected finite values; replace them, for example np.nan_to_num")
