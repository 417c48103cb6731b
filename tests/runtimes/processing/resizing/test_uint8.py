"""Resizing bytes by matrix products, beside sums of whole numbers, which are exact."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.runtimes.processing.resizing import uint8
from detr_export.runtimes.processing.resizing.taps import BICUBIC, BILINEAR, filter_taps, fixed_point
from detr_export.runtimes.processing.resizing.uint8 import bands, resize_bytes


def by_whole_numbers(image: np.ndarray, axis: int, out_size: int, resample: int) -> np.ndarray:
    """One axis in int64, as PyTorch's kernel defines it."""
    rows = np.moveaxis(image, axis, 0).astype(np.int64)
    first, weights = filter_taps(len(rows), out_size, resample)
    numbers, precision = fixed_point(weights)
    sums = np.zeros((out_size, *rows.shape[1:]), dtype=np.int64)
    for position, (start, row) in enumerate(zip(first, numbers, strict=True)):
        for tap, weight in enumerate(row):
            if weight:
                sums[position] += int(weight) * rows[start + tap]
    rounded = (sums + (1 << (precision - 1))) >> precision
    return np.moveaxis(np.clip(rounded, 0, 255).astype(np.uint8), 0, axis)


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("source", [(1, 1), (40, 37), (3, 500), (301, 66)])
@pytest.mark.parametrize("target", [(1, 1), (40, 64), (67, 37), (7, 200)])
@pytest.mark.parametrize("product", [1, 1 << 18])
def test_products_are_exact(source: tuple, target: tuple, resample: int, product: int, monkeypatch) -> None:
    monkeypatch.setattr(uint8, "PRODUCT", product)
    random = np.random.default_rng(sum(source))
    image = np.where(random.random((*source, 3)) < 0.5, 0, 255).astype(np.uint8)  # overshoots, and the largest sums
    image[: source[0] // 2] = random.integers(0, 256, (source[0] // 2, source[1], 3))
    planes = image.transpose(2, 0, 1)
    wanted = by_whole_numbers(by_whole_numbers(planes, 2, target[1], resample), 1, target[0], resample)
    resized = resize_bytes(planes, target, resample)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, wanted)


@pytest.mark.parametrize(("in_size", "dtype"), [(100, np.float32), (300, np.float32), (1000, np.float64)])
def test_fine_weights_need_float64(in_size: int, dtype: type) -> None:
    for band in bands(in_size, 100, BILINEAR):
        assert band.weights.dtype == dtype
        assert np.abs(band.weights.sum(axis=1) - 1).max() < 1e-3
