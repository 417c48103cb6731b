"""Anti-aliased resizing with numpy, which gives the numbers of PyTorch's ``interpolate`` on the CPU.

Source: the separable kernels in ATen's `UpSampleKernel.cpp` (PyTorch 2.13), as torchvision's `resize` calls them. The axes
are resampled one after the other, the width first. An axis that keeps its size is left alone.

- uint8: weights are 16-bit fixed-point numbers and every pass rounds to uint8, as in Pillow-SIMD. The result is exact.
  Pillow itself has 22-bit weights, and differs by one or two grey levels on up to a quarter of the pixels of a noisy image.
  (This is PyTorch on x86 with AVX2; without AVX2 torchvision goes through float32 instead.) `uint8` computes it.
- float32, float64: weights and sums have that type. The result is equal except for the order of rounding within a sum.
- other integers, bool and float16 go through float32, and integers are rounded to the nearest.

Filters that Pillow has and PyTorch does not are refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ImageError, OptionError
from detr_export.runtimes.processing.resizing.taps import BICUBIC, BILINEAR, filter_taps
from detr_export.runtimes.processing.resizing.uint8 import resize_bytes

NEAREST = int(Image.Resampling.NEAREST)


def resize_tensor(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resizes one image.

    Args:
        image: (C, H, W), any numeric dtype and any strides.
        size: (height, width).
        resample: Pillow's number for NEAREST (PyTorch's "nearest-exact"), BILINEAR or BICUBIC.

    Returns:
        (C, height, width), with the dtype of `image` and any strides; `image` itself if it has that size already.

    Raises:
        OptionError: it is another filter.
        ImageError: a resized value does not fit into the integer type of the image, as bicubic filters can overshoot.
    """
    if resample not in (NEAREST, BILINEAR, BICUBIC):
        name = Image.Resampling(resample).name
        raise OptionError(
            f"resample={resample} ({name}): DetrImageProcessorFast resizes with {NEAREST} NEAREST, {BILINEAR} BILINEAR or "
            f"{BICUBIC} BICUBIC; choose one of them, or DetrImageProcessor"
        )
    if image.shape[1:] == tuple(size):
        return image
    if resample == NEAREST:
        rows, columns = (nearest_exact(old, new) for old, new in zip(image.shape[1:], size))
        return image[:, rows[:, None], columns]
    if image.dtype == np.uint8:
        return resize_bytes(image, size, resample)
    exact = image.dtype in (np.float32, np.float64)
    source = image if exact else image.astype(np.float32)
    resized = _resample_axis(_resample_axis(source, 2, size[1], resample), 1, size[0], resample)
    if exact:
        return resized
    if image.dtype.kind in "iu":
        resized = np.rint(resized)
        limits = np.iinfo(image.dtype)
        if resized.min() < float(limits.min) or resized.max() > float(limits.max):
            raise ImageError(
                f"image of dtype {image.dtype} leaves the range of that type when resized: convert it to uint8 or float"
            )
    return resized.astype(image.dtype)


def nearest_exact(in_size: int, out_size: int) -> np.ndarray:
    """intp (out_size,): the input pixel that holds the centre of each output pixel; on a border it is the right one."""
    scale = np.float64(np.float32(in_size) / np.float32(out_size))
    centers = ((np.arange(out_size) + 0.5) * scale).astype(np.float32)
    return np.minimum(centers.astype(np.intp), in_size - 1)


def _resample_axis(image: np.ndarray, axis: int, out_size: int, resample: int) -> np.ndarray:
    in_size = image.shape[axis]
    if in_size == out_size:
        return image
    rows = np.ascontiguousarray(np.moveaxis(image, axis, 0))  # so that whole rows are copied
    first, weights = filter_taps(in_size, out_size, resample, image.dtype.type)
    return np.moveaxis(_weighted_sum(rows, first, weights), 0, axis)


def _weighted_sum(rows: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(out, ...) in the dtype of `weights`: the sum over taps t of weights[:, t] times rows[first + t]."""
    total = np.zeros((len(first), *rows.shape[1:]), dtype=weights.dtype)
    product = np.empty_like(total)
    for tap, column in enumerate(weights.T):
        if column.any():
            taken = rows[np.minimum(first + tap, len(rows) - 1)]
            total += np.multiply(taken, column.reshape(-1, *[1] * (rows.ndim - 1)), out=product)
    return total
