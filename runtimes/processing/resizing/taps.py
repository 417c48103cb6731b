"""The filters of PyTorch's anti-aliased resizing: which input pixels make an output pixel, and with what weights.

Source: ATen's `UpSampleKernel.cpp` (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

BILINEAR, BICUBIC = (int(Image.Resampling[name]) for name in ("BILINEAR", "BICUBIC"))

WEIGHT_BITS = 15  # bits of a signed 16-bit weight, without the sign
MAX_PRECISION = 22  # largest number of bits after the point: 32 bits of a sum, minus 8 for the pixel and 2 to spare
BICUBIC_A = -0.5  # the slope parameter of Pillow, and of PyTorch with anti-aliasing


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


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x, a = np.abs(distance), distance.dtype.type(BICUBIC_A)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {BILINEAR: (_triangle, 1.0), BICUBIC: (_cubic, 2.0)}
