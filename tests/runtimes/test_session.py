"""`check_inputs`: every refusal, and what passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import TensorSpec, check_inputs

SPECS = (
    TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
    TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
)
METADATA = Metadata("detection", {}, {}, True, ranges={"batch": (1, 4), "height": (32, 100), "width": (1, None)})
PIXELS, MASK = np.zeros((2, 3, 40, 50), np.float32), np.ones((2, 40, 50), np.int64)


def test_accepts() -> None:
    check_inputs(SPECS, {"pixel_values": PIXELS, "pixel_mask": MASK})
    check_inputs(SPECS, {"pixel_mask": MASK, "pixel_values": PIXELS}, METADATA)
    check_inputs(SPECS, {"pixel_values": PIXELS[:, :, ::-1], "pixel_mask": MASK[:, ::-1]}, METADATA)
    check_inputs((), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_mask": None}, "inputs are pixel_values; expected pixel_values, pixel_mask"),
        ({"pixel_mask": None, "pixel_values": None}, "inputs are none; expected pixel_values, pixel_mask"),
        ({"image": PIXELS}, "inputs are image, pixel_mask, pixel_values; expected pixel_values, pixel_mask"),
        ({"pixel_values": PIXELS.tolist()}, "pixel_values is a list; expected a numpy array"),
        ({"pixel_values": PIXELS.astype(np.float64)}, "pixel_values is float64; expected float32"),
        ({"pixel_values": PIXELS.astype(np.uint8)}, "pixel_values is uint8; expected float32"),
        ({"pixel_mask": MASK.astype(bool)}, "pixel_mask is bool; expected int64"),
        ({"pixel_values": PIXELS.astype(">f4")}, r"in the other byte order; convert it: array.astype\('float32'\)"),
        ({"pixel_values": PIXELS[0]}, r"pixel_values has shape \(3, 40, 50\); expected \(batch, 3, height, width\)"),
        ({"pixel_values": PIXELS[:, :1]}, r"pixel_values has shape \(2, 1, 40, 50\); expected \(batch, 3, height, width\)$"),
        ({"pixel_mask": MASK[:1]}, r"pixel_mask has shape \(1, 40, 50\); expected .* with batch=2"),
        ({"pixel_mask": MASK[:, :, :7]}, r"pixel_mask has shape \(2, 40, 7\); expected .* with width=50"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    arrays = {"pixel_values": PIXELS, "pixel_mask": MASK, **changes}
    with pytest.raises(InputError, match=message):
        check_inputs(SPECS, {name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("shape", "metadata", "message"),
    [
        ((5, 40, 50), METADATA, "batch is 5; this model takes 1 to 4"),
        ((0, 40, 50), METADATA, "batch is 0; this model takes 1 to 4"),
        ((0, 40, 50), None, "batch is 0; this model takes 1 to any"),
        ((1, 31, 50), METADATA, "height is 31; this model takes 32 to 100"),
        ((1, 101, 50), METADATA, "height is 101; this model takes 32 to 100"),
        ((1, 40, 0), METADATA, "width is 0; this model takes 1 to any"),
        ((1, 40, 0), None, "width is 0; this model takes 1 to any"),
    ],
)
def test_ranges(shape: tuple[int, int, int], metadata: Metadata | None, message: str) -> None:
    arrays = {"pixel_values": np.zeros((shape[0], 3, *shape[1:]), np.float32), "pixel_mask": np.zeros(shape, np.int64)}
    with pytest.raises(InputError, match=message):
        check_inputs(SPECS, arrays, metadata)


def test_dimensions_without_a_name_are_free_of_each_other() -> None:
    spec = TensorSpec("x", "float32", ("?", "?"))
    check_inputs((spec,), {"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(InputError, match=r"x has shape \(2,\); expected \(\?, \?\)"):
        check_inputs((spec,), {"x": np.zeros(2, np.float32)})


def test_a_spec_prints_itself() -> None:
    assert str(SPECS[0]) == "pixel_values float32 (batch, 3, height, width)"
