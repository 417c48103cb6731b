"""Scaled bytes must be the table's numbers, whether they are calculated or looked up."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.runtimes.processing.byte_scaling import STRIP, exact, scale_bytes
from detr_export.runtimes.processing.image_processor_fast import FusedScaling
from detr_export.runtimes.processing.transforms import FIRST, PixelScaling

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = [(1 / 255, MEAN, STD), (1 / 255, None, None), (None, MEAN, STD), (1 / 127.5, 0.5, (0.1, 0.2, 0.3))]


@pytest.mark.parametrize("kind", [PixelScaling, FusedScaling])
@pytest.mark.parametrize("options", USUAL)
def test_usual_options_are_calculated(kind: type[PixelScaling], options: tuple) -> None:
    scaling = kind(*options)
    assert exact(scaling.steps(3), scaling.table(3)) is not None


@pytest.mark.parametrize("kind", [PixelScaling, FusedScaling])
@pytest.mark.parametrize("factor", [1 / 255, 0.0041, 1e-300, 3e38])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (37, 901), (2, STRIP + 3)])
def test_numbers_are_those_of_apply(kind: type[PixelScaling], factor: float, shape: tuple[int, int]) -> None:
    scaling = kind(factor, MEAN, STD) if 1e-9 < factor < 1e9 else kind(factor, None, None)
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8).transpose(2, 0, 1)
    out = np.zeros((3, shape[0] + 2, shape[1] + 1), dtype=np.float32)
    with np.errstate(all="ignore"):
        table, wanted = scaling.table(3), scaling.apply(image, FIRST)
        steps = exact(scaling.steps(3), table)
    for tried in (None, steps):
        scale_bytes(image, out, table, tried)
        assert np.array_equal(out[:, : shape[0], : shape[1]], wanted)
    assert not out[:, shape[0] :].any()
    assert not out[:, :, shape[1] :].any()


def test_steps_that_differ_in_the_last_bit_are_not_used() -> None:
    scaling = PixelScaling(1 / 255, None, None)
    product = [(np.multiply, np.full(3, 1 / 255, dtype=np.float32))]
    assert exact(product, scaling.table(3)) is None
