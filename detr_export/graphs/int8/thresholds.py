"""From how values are distributed to the magnitude that becomes 127. Larger values are cut off there."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np

from detr_export.graphs.int8.histograms import BINS, Histogram
from detr_export.graphs.int8.library import HistogramCollector
from detr_export.runtimes.errors import InputError

_LEVELS = 127
_PERCENTILE = 99.999  # of the magnitudes are kept, onnxruntime's own default
_ENTROPY_BINS = 512  # on each side; onnxruntime's search takes quadratic time
_CANDIDATES = np.linspace(0.05, 1.0, 96)  # shares of the largest magnitude


def threshold(histogram: Histogram, method: str) -> float:
    """The magnitude that becomes 127, above 0; 1 for a tensor that was always 0.

    Raises:
        InputError: the method is unknown.
    """
    if method not in METHODS:
        raise InputError(f"calibration_method is {method!r}; expected {', '.join(METHODS)}")
    if histogram.largest == 0:
        return 1.0
    found = METHODS[method](histogram)
    return min(found, histogram.largest) if found > 0 else histogram.largest


def _largest(histogram: Histogram) -> float:
    return histogram.largest


def _percentile(histogram: Histogram) -> float:
    collector = HistogramCollector("percentile", True, BINS, BINS, _PERCENTILE, "same")
    edges = histogram.edges.astype(np.float32)
    largest = np.float32(histogram.largest)
    collector.histogram_dict["values"] = (histogram.counts, edges, -largest, largest)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        _, high, *_ = collector.compute_percentile()["values"]
    return float(high)


def _entropy(histogram: Histogram) -> float:
    side = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
    both = np.concatenate([side[::-1], side])
    edges = np.linspace(-histogram.limit, histogram.limit, len(both) + 1, dtype=np.float32)
    largest = np.float32(histogram.largest)
    collector = HistogramCollector("entropy", True, len(both), 2 * (_LEVELS + 1), _PERCENTILE, "same")
    low, high = collector.get_entropy_threshold((both, edges, -largest, largest, largest), 2 * (_LEVELS + 1))
    return float(max(-low, high))


def _least_error(histogram: Histogram) -> float:
    """The threshold with the least sum of squared errors, of rounding and of cutting off."""
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    middles[0] = 0.0  # most of what is there is 0, behind a ReLU
    used = np.flatnonzero(histogram.counts)
    values, counts = middles[used], histogram.counts[used]
    steps = (_CANDIDATES * histogram.largest / _LEVELS)[:, None]
    rounded = np.minimum(np.rint(values / steps), _LEVELS) * steps
    errors = ((rounded - values) ** 2 * counts).sum(axis=1)
    return float(_CANDIDATES[np.argmin(errors)] * histogram.largest)


METHODS: dict[str, Callable[[Histogram], float]] = {
    "minmax": _largest,
    "entropy": _entropy,
    "percentile": _percentile,
    "mse": _least_error,
}
