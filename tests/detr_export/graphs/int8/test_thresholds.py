"""Histograms that grow, and what each method makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.graphs.int8.histograms import BINS, Histogram
from detr_export.graphs.int8.options import METHODS as NAMES
from detr_export.graphs.int8.thresholds import METHODS, threshold
from detr_export.runtimes.errors import InputError


def histogram(*parts: np.ndarray) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part.astype(np.float32), float(np.abs(part).max()))
    return made


def normal(outliers: int = 0, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.concatenate([random.standard_normal(100_000), np.full(outliers, 60.0)]) * scale


def test_it_grows_and_forgets_nothing() -> None:
    values = normal()
    parts = np.split(values, 10)
    grown = histogram(*(part * 1.7**index for index, part in enumerate(parts)))
    everything = np.abs(np.concatenate([part * 1.7**index for index, part in enumerate(parts)]))
    assert grown.counts.sum() == everything.size
    assert grown.counts.shape == (BINS,)
    assert grown.largest == pytest.approx(everything.max())
    counts, _ = np.histogram(everything, bins=grown.edges)
    assert np.abs(np.cumsum(counts) - np.cumsum(grown.counts)).max() < 0.001 * everything.size


def test_zeros_come_first() -> None:
    made = histogram(np.zeros(10), np.array([1.0, 4.0]))
    assert (made.counts[0], made.counts.sum(), made.limit) == (10, 12, 4.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_answer(method: str) -> None:
    assert tuple(METHODS) == NAMES
    assert threshold(histogram(np.zeros(5)), method) == 1.0
    for values in (np.array([0.001]), np.full(1000, 3.0), np.abs(normal()), normal(scale=1e-6), normal(scale=1e6)):
        assert 0 < threshold(histogram(values), method) <= float(np.abs(values).max()) * 1.00001


def test_what_each_makes_of_an_outlier() -> None:
    found = {method: threshold(histogram(normal(outliers=1)), method) for method in METHODS}
    assert found["minmax"] == 60
    assert found["mse"] < 50
    assert 3 < found["entropy"] < 30
    assert threshold(histogram(normal(outliers=1), normal(), normal()), "percentile") < 10


def test_the_least_error_is_the_least() -> None:
    values = normal(outliers=3)

    def error(limit: float) -> float:
        step = limit / 127
        return float(np.square(np.clip(np.rint(values / step), -127, 127) * step - values).sum())

    found = error(threshold(histogram(values), "mse"))
    assert found < 1.1 * min(error(limit) for limit in np.linspace(1, 60, 200))
    assert found < error(60.0)


def test_an_unknown_method() -> None:
    with pytest.raises(InputError, match="calibration_method is 'max'; expected minmax, entropy, percentile, mse"):
        threshold(Histogram(), "max")
