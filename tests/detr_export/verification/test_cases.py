"""The batches of the gate, and the images in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from detr_export.runtimes import DetrImageProcessor, DetrImageProcessorFast
from detr_export.runtimes.metadata import Metadata
from detr_export.verification.cases import GRID, Case, fitting_cases, make_feeds

METADATA = Metadata("detection", {0: "a", 1: "b"}, {}, pixel_mask=True)
PADDED = Case(33, 45, ((33, 45), (20, 45), (33, 7)))


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        ({}, lambda case: True),
        ({"batch": (1, None), "height": (1, None), "width": (1, None)}, lambda case: True),
        ({"batch": (2, 3)}, lambda case: 2 <= len(case.valid) <= 3),
        ({"height": (1, 480)}, lambda case: case.height <= 480),
        ({"width": (500, None), "batch": (1, 1)}, lambda case: case.width >= 500 and len(case.valid) == 1),
    ],
)
def test_fitting_cases(ranges: dict, allowed: Callable[[Case], bool]) -> None:
    expected = [case for case in GRID if allowed(case)]
    assert fitting_cases(replace(METADATA, ranges=ranges)) == expected
    assert expected


def test_the_grid_is_varied() -> None:
    """Batches, orientations, odd sizes, and padding in one direction and in both."""
    assert {len(case.valid) for case in GRID} == {1, 2, 3, 4}
    assert any(case.height > case.width for case in GRID)
    assert any(case.height < case.width for case in GRID)
    assert any(case.height == case.width for case in GRID)
    assert any(case.height % 2 and case.width % 2 for case in GRID)
    assert any(height < case.height and width < case.width for case in GRID for height, width in case.valid)
    for case in GRID:
        assert all(height <= case.height and width <= case.width for height, width in case.valid)
        assert any(height == case.height for height, _ in case.valid)
        assert any(width == case.width for _, width in case.valid)


def test_without_a_mask_nothing_is_padded() -> None:
    metadata = replace(METADATA, pixel_mask=False)
    assert all(case.valid == ((case.height, case.width),) * len(case.valid) for case in fitting_cases(metadata))
    assert len(fitting_cases(metadata)) == len(GRID)


def test_float_images_are_exact_as_they_are() -> None:
    feeds = make_feeds(PADDED, 3, METADATA, 0)
    assert feeds.file is feeds.checkpoint
    assert feeds.exact["pixel_values"].dtype == np.float64
    assert np.array_equal(feeds.exact["pixel_values"], feeds.checkpoint["pixel_values"])
    assert np.array_equal(feeds.exact["pixel_mask"], feeds.checkpoint["pixel_mask"])


@pytest.mark.parametrize(
    "processor",
    [
        DetrImageProcessor(),
        DetrImageProcessor(image_mean=0.5, image_std=[0.25, 0.5, 1.0]),
        DetrImageProcessor(do_normalize=False, rescale_factor=1 / 127),
        DetrImageProcessor(do_rescale=False, do_normalize=False),
        DetrImageProcessorFast(),
    ],
)
def test_bytes_are_scaled_without_rounding(processor: DetrImageProcessor) -> None:
    """The processor's float32 pixels are the exact ones but for their rounding; both are zero where there is no image."""
    feeds = make_feeds(PADDED, 3, replace(METADATA, input="uint8", processor=processor.to_dict()), 1)
    exact, rounded = feeds.exact["pixel_values"], feeds.checkpoint["pixel_values"]
    assert (exact.dtype, rounded.dtype) == (np.float64, np.float32)
    assert np.abs(exact - rounded).max() <= 4 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.array_equal(exact == 0, rounded == 0)
    assert exact.std() > 0.1
    assert set(feeds.file) == {"pixel_values", "valid_sizes"}
    assert feeds.file["pixel_values"].dtype == np.uint8
