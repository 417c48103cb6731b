"""Histograms of the magnitudes of values, in bounded memory: a range that grows by doubling, and as many bins as before."""

from __future__ import annotations

import numpy as np

BINS = 2048


class Histogram:
    """How often the magnitudes of a tensor's values occur, and the largest one.

    Attributes:
        counts: int64 (BINS,), of samples in equal bins from 0 to `limit`.
        limit: where the last bin ends; 0 before there was a value that is not 0.
        largest: the largest magnitude of all values, samples or not.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, samples: np.ndarray, largest: float) -> None:
        """Takes in samples, float (N,), of values whose largest magnitude is `largest`."""
        self.largest = max(self.largest, largest)
        if self.limit == 0 and largest > 0:
            self.counts[0], self.limit = self.counts.sum(), largest  # what came before was 0
        while largest > self.limit:
            self.counts[: BINS // 2] = self.counts[0::2] + self.counts[1::2]
            self.counts[BINS // 2 :] = 0
            self.limit *= 2
        sizes = np.abs(samples).astype(np.float64)
        bins = (sizes * (BINS / self.limit if self.limit else 0)).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    @property
    def edges(self) -> np.ndarray:
        """float64 (BINS + 1,): where the bins begin and end."""
        return np.linspace(0, self.limit, BINS + 1)
