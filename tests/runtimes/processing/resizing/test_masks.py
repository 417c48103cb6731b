"""Bilinear resizing against torch.nn.functional.interpolate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.processing.resizing import masks as mask_resize
from detr_export.runtimes.processing.resizing.masks import linear_taps, resize_bilinear, resized_rows

SIZES = [
    ((7, 9), (7, 9)),
    ((7, 9), (28, 36)),
    ((25, 34), (100, 133)),
    ((25, 34), (97, 64)),
    ((40, 30), (13, 11)),
    ((40, 30), (13, 90)),
    ((1, 1), (5, 6)),
    ((1, 8), (9, 3)),
    ((6, 1), (2, 17)),
    ((31, 33), (1, 1)),
    ((2, 3), (211, 301)),
]


def torch_bilinear(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    flat = torch.from_numpy(masks.reshape(1, -1, *masks.shape[-2:]))
    resized = torch.nn.functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return resized.numpy().reshape(*masks.shape[:-2], *size)


def random_masks(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, shape).astype(np.float32)


@pytest.mark.parametrize("leading", [(), (3,), (2, 4)])
@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_equals_torch(leading, in_size, out_size):
    masks = random_masks(*leading, *in_size)
    before = masks.copy()
    resized = resize_bilinear(masks, out_size)
    assert resized.dtype == np.float32
    assert resized.shape == (*leading, *out_size)
    np.testing.assert_allclose(resized, torch_bilinear(masks, out_size), rtol=0, atol=4e-6)
    np.testing.assert_array_equal(masks, before)


@pytest.mark.parametrize("in_size", [3, 25, 200, 267, 334])
@pytest.mark.parametrize("out_size", [1, 3, 100, 427, 640, 800, 1066, 1333])
def test_positions_equal_torch_on_a_ramp(in_size, out_size):
    """Resizing 0, 1, 2, ... gives back the position that each output pixel reads from."""
    lower, upper, weight = linear_taps(in_size, out_size)
    ramp = np.arange(in_size, dtype=np.float32)[None]
    expected = torch_bilinear(ramp, (1, out_size))[0]
    np.testing.assert_allclose(lower + weight * (upper - lower), expected, rtol=1e-6, atol=1e-6)
    assert weight.dtype == np.float32
    assert weight.min() >= 0
    assert weight.max() <= 1


@pytest.mark.parametrize("chunk_values", [1, 2000, 10**9])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, chunk_values):
    masks = random_masks(7, 12, 10)
    expected = resize_bilinear(masks, (30, 41))
    monkeypatch.setattr(mask_resize, "CHUNK_VALUES", chunk_values)
    np.testing.assert_array_equal(resize_bilinear(masks, (30, 41)), expected)


@pytest.mark.parametrize("out_size", [(7, 9), (50, 3)])
def test_a_constant_stays_exactly_constant(out_size):
    masks = np.full((2, 7, 9), 0.1, dtype=np.float32)
    np.testing.assert_array_equal(resize_bilinear(masks, out_size), np.full((2, *out_size), np.float32(0.1)))


def test_the_same_size_gives_an_equal_copy():
    masks = random_masks(2, 5, 6)
    resized = resize_bilinear(masks, (5, 6))
    np.testing.assert_array_equal(resized, masks)
    assert not np.shares_memory(resized, masks)


def test_other_layouts_and_dtypes_are_converted():
    masks = random_masks(6, 5, 4)
    expected = resize_bilinear(np.ascontiguousarray(masks.transpose(2, 0, 1)), (9, 9))
    np.testing.assert_array_equal(resize_bilinear(masks.astype(np.float64).transpose(2, 0, 1), (9, 9)), expected)


def test_no_masks_give_no_masks():
    assert resize_bilinear(np.zeros((0, 3, 4), dtype=np.float32), (6, 8)).shape == (0, 6, 8)


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
@pytest.mark.parametrize("channels", [1, 6])
def test_rows_equal_the_resized_image(in_size, out_size, channels):
    maps = random_masks(*in_size, channels)
    rows = np.stack([row.copy() for row in resized_rows(maps, out_size)])
    np.testing.assert_allclose(rows, np.moveaxis(resize_bilinear(np.moveaxis(maps, -1, 0), out_size), 0, -1), atol=4e-6)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((4,), (2, 2), r"masks end in \(4,\)"),
        ((2, 0, 4), (2, 2), r"masks end in \(0, 4\)"),
        ((2, 3, 4), (0, 2), r"target size is \(0, 2\)"),
        ((2, 3, 4), (5, -1), r"target size is \(5, -1\)"),
        ((2, 3, 4), (5, 6, 7), r"target size is \(5, 6, 7\)"),
    ],
)
def test_refuses(shape, size, message):
    with pytest.raises(InputError, match=message):
        resize_bilinear(np.zeros(shape, dtype=np.float32), size)
