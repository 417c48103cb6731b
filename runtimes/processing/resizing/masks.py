"""Bilinear resizing of masks with numpy, which gives the numbers of PyTorch's ``interpolate(mode="bilinear")``.

Both functions sample as PyTorch does with ``align_corners=False`` and no anti-aliasing
(`area_pixel_compute_source_index` in ATen's `UpSample.h`): output pixel ``i`` lies at
``max(0, (i + 0.5) * in / out - 0.5)`` on the input axis and is a blend of the two input pixels around it. Everything
is float32, but the position is rounded only once, at the end: ATen's AVX2 and AVX-512 kernels multiply and subtract in one
fused step, and a position that is rounded twice can be wrong by 1e-5 of a pixel.

One thing differs: the blend is ``a + t * (b - a)`` here and ``(1 - t) * a + t * b`` in ATen. This needs one pass less, and
constant regions stay exactly constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np

from detr_export.runtimes.errors import InputError

# Number of values that `resize_bilinear` computes at a time (4 MiB of float32). It is large enough to hide the cost of
# numpy's calls, and so small that they stay in the cache, even for a hundred masks.
CHUNK_VALUES = 1 << 20


def linear_taps(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The input pixels that each output pixel of one axis is made from.

    Args:
        in_size: input pixels along the axis, at least 1.
        out_size: output pixels along the axis, at least 1.

    Returns:
        ``lower`` and ``upper``, intp (out_size,), the input pixels on both sides, and ``weight``, float32 (out_size,)
        in [0, 1], the share of ``upper``.
    """
    scale = np.float32(in_size) / np.float32(out_size)
    # The product of two float32 numbers is exact in float64, so this rounds once, like a fused multiply-add.
    exact = (np.arange(out_size, dtype=np.float64) + 0.5) * np.float64(scale) - 0.5
    position = np.maximum(exact.astype(np.float32), np.float32(0))
    lower = np.minimum(position.astype(np.intp), in_size - 1)
    upper = np.minimum(lower + 1, in_size - 1)
    weight = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)
    return lower, upper, weight


def resize_bilinear(masks: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes the last two axes, up or down.

    Args:
        masks: float32 (..., h, w); other dtypes are converted. Any leading axes, h and w at least 1.
        size: (height, width) of the result.

    Returns:
        float32 (..., height, width), a new array.

    Raises:
        InputError: `masks` has fewer than two axes or an empty image, or `size` has a side below 1.

    Numbers: ``torch.nn.functional.interpolate(..., mode="bilinear", align_corners=False)``, to float32 rounding.
    """
    masks = np.asarray(masks, dtype=np.float32)
    height, width = checked_size(masks.shape[-2:], size)
    left, right, x_weight = linear_taps(masks.shape[-1], width)
    top, bottom, y_weight = linear_taps(masks.shape[-2], height)
    y_column = y_weight[:, None]

    flat = masks.reshape(-1, *masks.shape[-2:])
    resized = np.empty((len(flat), height, width), dtype=np.float32)
    step = max(1, CHUNK_VALUES // max(height * width, masks.shape[-2] * width))
    for start in range(0, len(flat), step):
        chunk = flat[start : start + step]
        wide = _blend(chunk.take(left, axis=2), chunk.take(right, axis=2), x_weight)
        out = resized[start : start + step]
        np.take(wide, top, axis=1, out=out, mode="clip")  # "clip" writes straight into `out`; no index is clipped
        _blend(out, wide.take(bottom, axis=1), y_column)
    return resized.reshape(*masks.shape[:-2], height, width)


def resized_rows(
    maps: np.ndarray,
    size: Sequence[int],
    rows: Optional[range] = None,
    above: int = 0,
    in_height: Optional[int] = None,
) -> Iterator[np.ndarray]:
    """The rows of the resized image, top to bottom, one at a time, with the channels last.

    This order is for callers that reduce over the channels, for example to find the largest of 100 masks at every pixel.
    A row of all channels stays in the cache, and the resized stack, 340 MB for 100 masks of 800x1066, is never held.

    Args:
        maps: float32 (h, w, C), C-contiguous.
        size: (height, width) of the resized image, each at least 1.
        rows: which rows of the resized image; all when None.
        above: for maps that are a band of a larger image: how many rows lie above them.
        in_height: the height of that image; that of the maps when None.

    Yields:
        float32 (width, C). It is the same buffer every time, so use it before you ask for the next row.

    Numbers: those of `resize_bilinear`.
    """
    height, width = checked_size(maps.shape[:2], size)
    channels = maps.shape[2]
    left, right, x_weight = linear_taps(maps.shape[1], width)
    top, bottom, y_weight = linear_taps(maps.shape[0] if in_height is None else in_height, height)
    # The weights are repeated, so that the blends run over one long axis and not over `width` short ones.
    x_column = np.repeat(x_weight, channels).reshape(width, channels)
    upper, lower, step, row = (np.empty((width, channels), dtype=np.float32) for _ in range(4))

    def stretch(y: int, out: np.ndarray) -> None:
        np.take(maps[y - above], left, axis=0, out=out, mode="clip")
        np.take(maps[y - above], right, axis=0, out=row, mode="clip")
        _blend(out, row, x_column)

    # `upper` and `lower` hold the two input rows around the output row, and move down with it
    held = (-1, -1)
    for y in range(height) if rows is None else rows:
        wanted = int(top[y]), int(bottom[y])
        if wanted != held:
            if wanted[0] == held[1]:
                upper, lower = lower, upper
            else:
                stretch(wanted[0], upper)
            stretch(wanted[1], lower)
            np.subtract(lower, upper, out=step)
            held = wanted
        np.multiply(step, y_weight[y], out=row)
        np.add(row, upper, out=row)
        yield row


def checked_size(in_shape: tuple[int, ...], size: Sequence[int]) -> tuple[int, int]:
    """`size` as two ints.

    Raises:
        InputError: `in_shape` is not a height and a width of at least 1, or `size` is not.
    """
    if len(in_shape) != 2 or min(in_shape) < 1:
        raise InputError(f"masks end in {in_shape}, expected (height, width) of at least 1 each; pass (..., h, w)")
    sides = tuple(int(side) for side in size)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"target size is {sides}, expected (height, width) of at least 1 each, in pixels")
    return sides[0], sides[1]


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Writes ``first + weight * (second - first)`` into `first` and returns it. It overwrites `second`."""
    np.subtract(second, first, out=second)
    np.multiply(second, weight, out=second)
    return np.add(first, second, out=first)
