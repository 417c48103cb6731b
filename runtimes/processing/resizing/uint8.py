"""Anti-aliased resizing of uint8 images as PyTorch does it on the CPU: exact, by small matrix products.

Weights are whole numbers of at most 16 bits, pixels have 8 bits, and each axis rounds to uint8 (see `tensors`). As long as
no sum reaches 2**24, float32 holds all of them exactly, so a matrix product gives them in any order and on any CPU. Weights
are finer where images become less than a quarter as large. There float64 does the same, up to 2**53.

An output pixel needs few input pixels, all near each other. So each block of outputs has a matrix of its own, over the
inputs that it needs. Blocks of rows pass through both axes and stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from detr_export.runtimes.processing.resizing.taps import filter_taps, fixed_point

# Outputs of a block: a larger one multiplies more zeros, a smaller one gives matrices that are too small for a fast product.
BLOCK = 32
# Multiplications of one product. Up to here OpenBLAS, which is in numpy, uses one thread; more threads take longer here.
PRODUCT = 1 << 18


@dataclass(frozen=True)
class Band:
    """How some neighbouring pixels of a resized axis are made."""

    outputs: slice
    inputs: slice
    weights: np.ndarray  # float32 or float64 (outputs, inputs); the sum of a row is 1


@lru_cache(maxsize=16)
def bands(in_size: int, out_size: int, resample: int) -> Sequence[Band]:
    """All bands of an axis. Their numbers are those of `filter_taps` and `fixed_point`.

    Args:
        in_size, out_size: pixels along the axis, at least 1.
        resample: BILINEAR or BICUBIC.
    """
    first, weights = filter_taps(in_size, out_size, resample)
    numbers, precision = fixed_point(weights)
    largest = 255 * int(np.abs(numbers).sum(axis=1).max()) + ((1 << precision) >> 1)  # with what rounding adds
    dtype = np.float32 if largest < 1 << 24 else np.float64
    scaled = (numbers / (1 << precision)).astype(dtype)  # exact, because it divides by a power of two
    taps = np.arange(weights.shape[1])
    found = []
    for start in range(0, out_size, BLOCK):
        outputs = slice(start, min(start + BLOCK, out_size))
        columns = first[outputs, None] + taps
        low, high = int(columns.min()), min(int(columns.max()) + 1, in_size)
        matrix = np.zeros((len(columns), int(columns.max()) + 1 - low), dtype=dtype)
        np.put_along_axis(matrix, columns - low, scaled[outputs], axis=1)
        found.append(Band(outputs, slice(low, high), matrix[:, : high - low].copy()))  # taps beyond the image weigh nothing
    return tuple(found)


def resize_bytes(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resizes one image: its width first, then its height. An axis that keeps its size has weights of 1 and 0.

    Args:
        image: uint8 (C, H, W), of any strides.
        size: (height, width).
        resample: BILINEAR or BICUBIC.

    Returns:
        uint8 (C, height, width), in C order.
    """
    across = bands(image.shape[2], size[1], resample)
    resized = np.empty((len(image), *size), dtype=np.uint8)
    for band in bands(image.shape[1], size[0], resample):
        wide = _across(image[:, band.inputs], across, size[1])
        resized[:, band.outputs] = _down(wide, band.weights)
    return resized


def _across(rows: np.ndarray, across: Sequence[Band], width: int) -> np.ndarray:
    """(C, h, width) whole numbers, in the dtype of the weights; `rows` is uint8 (C, h, w)."""
    dtype = across[0].weights.dtype
    lines = rows.astype(dtype, order="C").reshape(-1, rows.shape[2])
    wide = np.empty((len(lines), width), dtype=dtype)
    for band in across:
        weights = band.weights.T
        step = max(1, PRODUCT // weights.size)
        for top in range(0, len(lines), step):
            np.matmul(lines[top : top + step, band.inputs], weights, out=wide[top : top + step, band.outputs])
    return _rounded(wide).reshape(*rows.shape[:2], width)


def _down(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C, outputs, width) whole numbers, in the dtype of `weights`, which is (outputs, h); `rows` is (C, h, width)."""
    rows = rows.astype(weights.dtype, order="C", copy=False)
    tall = np.empty((len(rows), len(weights), rows.shape[2]), dtype=weights.dtype)
    step = max(1, PRODUCT // weights.size)
    for plane, out in zip(rows, tall):
        for left in range(0, rows.shape[2], step):
            np.matmul(weights, plane[:, left : left + step], out=out[:, left : left + step])
    return _rounded(tall)


def _rounded(values: np.ndarray) -> np.ndarray:
    """The nearest whole numbers from 0 to 255, halves upwards; in place."""
    values += 0.5
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)
