"""Anti-aliased resizing with numpy, which gives the numbers of PyTorch's ``interpolate`` on the CPU.

Source: the separable kernels in ATen's `UpSampleKernel.cpp` (PyTorch 2.13), as torchvision's `resize` calls them. The axes
are resampled one after the other, the width first. An axis that keeps its size is left alone.

- uint8: weights are 16-bit fixed-point numbers and every pass rounds to uint8, as in Pillow-SIMD. The result is exact.
  Pillow itself has 22-bit weights, and differs by one or two grey levels on up to a quarter of the pixels of a noisy image.
  (This is PyTorch on x86 with AVX2; without AVX2 torchvision goes through float32 instead.)
- float32, float64: weights and sums have that type. The result is equal except for the order of rounding within a sum.
- other integers, bool and float16 go through float32, and integers are rounded to the nearest.

Filters that Pillow has and PyTorch does not are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ImageError, OptionError

NEAREST, BILINEAR, BICUBIC = (int(Image.Resampling[name]) for name in ("NEAREST", "BILINEAR", "BICUBIC"))

WEIGHT_BITS = 15  # bits of a signed 16-bit weight, without the sign
MAX_PRECISION = 22  # largest number of bits after the point: 32 bits of a sum, minus 8 for the pixel and 2 to spare
BICUBIC_A = -0.5  # the slope parameter of Pillow, and of PyTorch with anti-aliasing


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
    exact = image.dtype in (np.uint8, np.float32, np.float64)
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


def filter_taps(in_size: int, out_size: int, resample: int, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """The input pixels that each output pixel of one axis is made from, and their weights.

    Args:
        in_size, out_size: pixels along the axis, at least 1.
        resample: BILINEAR or BICUBIC.
        dtype: float32 or float64; positions are computed in it.

    Returns:
        ``first``, intp (out_size,), the first input pixel, and ``weights``, `dtype` (out_size, taps), the weights of that
        pixel and of those after it. The sum of a row is 1.
    """
    kernel, radius = _KERNELS[resample]
    scale = dtype(in_size) / dtype(out_size)
    stretch = max(scale, dtype(1))  # a filter is as wide as an output pixel, and never narrower than an input pixel
    support = dtype(radius) * stretch
    centers = (np.float64(scale) * (np.arange(out_size) + 0.5)).astype(dtype)
    first = np.maximum((centers - support + 0.5).astype(np.intp), 0)
    last = np.minimum((centers + support + 0.5).astype(np.intp), in_size)
    taps = np.arange(int((last - first).max()))
    positions = first[:, None] + taps
    distances = ((positions.astype(dtype) - centers[:, None]) + dtype(0.5)) * (dtype(1) / stretch)
    weights = np.where(positions < last[:, None], kernel(distances), dtype(0)).astype(dtype)
    return first, weights / weights.sum(axis=1, keepdims=True)


def fixed_point(weights: np.ndarray) -> tuple[np.ndarray, int]:
    """The weights as int32 that fit into 16 bits, and the number of bits after the point."""
    largest, precision = float(weights.max()), 0
    while precision < MAX_PRECISION and int(0.5 + largest * 2 ** (precision + 1)) < 2**WEIGHT_BITS:
        precision += 1
    scaled = weights * 2**precision
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32), precision


def _resample_axis(image: np.ndarray, axis: int, out_size: int, resample: int) -> np.ndarray:
    in_size = image.shape[axis]
    if in_size == out_size:
        return image
    rows = np.ascontiguousarray(np.moveaxis(image, axis, 0))  # so that whole rows are copied
    if image.dtype == np.uint8:
        first, weights = filter_taps(in_size, out_size, resample)
        weights, precision = fixed_point(weights)
        total = _weighted_sum(rows, first, weights)
        total += 1 << (precision - 1)
        total >>= precision
        result = np.clip(total, 0, 255, out=total).astype(np.uint8)
    else:
        first, weights = filter_taps(in_size, out_size, resample, image.dtype.type)
        result = _weighted_sum(rows, first, weights)
    return np.moveaxis(result, 0, axis)


def _weighted_sum(rows: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(out, ...) in the dtype of `weights`: the sum over taps t of weights[:, t] times rows[first + t]."""
    total = np.zeros((len(first), *rows.shape[1:]), dtype=weights.dtype)
    product = np.empty_like(total)
    for tap, column in enumerate(weights.T):
        if column.any():
            taken = rows[np.minimum(first + tap, len(rows) - 1)]
            total += np.multiply(taken, column.reshape(-1, *[1] * (rows.ndim - 1)), out=product)
    return total


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x, a = np.abs(distance), distance.dtype.type(BICUBIC_A)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {BILINEAR: (_triangle, 1.0), BICUBIC: (_cubic, 2.0)}
