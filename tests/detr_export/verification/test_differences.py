"""The measures of a difference, against values that were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detr_export.verification.differences import cosine_similarity, distance, rank, signal_to_noise


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(1, -1)


@pytest.mark.parametrize(
    ("given", "reference", "largest", "cosine", "snr"),
    [
        (array(3, 4), array(3, 4), 0.0, 1.0, math.inf),
        (array(-3, -4), array(3, 4), 8.0, -1.0, 10 * math.log10(25 / 100)),
        (array(4, -3), array(3, 4), 7.0, 0.0, 10 * math.log10(25 / 50)),
        (array(3, 4.5), array(3, 4), 0.5, 27 / (5 * math.sqrt(29.25)), 20.0),  # 25 / 0.25 is 100, which is 20 dB
        (array(6, 8), array(3, 4), 4.0, 1.0, 0.0),  # the direction is the same
        (array(0, 0), array(3, 4), 4.0, 0.0, 0.0),
        (array(3, 4), array(0, 0), 4.0, 0.0, -math.inf),
        (array(0, 0), array(0, 0), 0.0, 1.0, math.inf),
    ],
)
def test_measures(given: np.ndarray, reference: np.ndarray, largest: float, cosine: float, snr: float) -> None:
    assert distance(given, reference) == largest
    assert cosine_similarity(given, reference) == pytest.approx(cosine, abs=1e-12)
    assert signal_to_noise(given, reference) == pytest.approx(snr, abs=1e-9)


def test_half_precision_is_measured_in_double() -> None:
    """In float16 the squares would be infinite, and the sum of 1 and 1e-4 would be 1."""
    given, near = np.array([300.0, 1.0], np.float16), np.array([300.0, 1.0001])
    assert distance(given, near) == pytest.approx(1e-4)
    assert cosine_similarity(given, near) == pytest.approx(1, abs=1e-9)
    assert signal_to_noise(given, near) == pytest.approx(10 * math.log10(90001.0002 / 1e-8), abs=1e-6)


def test_what_is_not_finite_is_worst() -> None:
    assert math.isnan(distance(array(np.inf), array(np.inf)))
    assert distance(array(np.inf), array(1)) == math.inf
    assert math.isnan(max([1e30, math.nan, 2.0], key=rank))


def test_nothing_differs_by_nothing() -> None:
    assert distance(np.zeros((0, 3)), np.zeros((0, 3))) == 0
