"""How far two arrays are apart."""

from __future__ import annotations

import math

import numpy as np


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest absolute difference; NaN or infinite where one of both is not finite."""
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which passes no test
        return float(np.abs(one.astype(np.float64) - other).max(initial=0.0))


def cosine_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine of the angle between two arrays of one shape, as vectors, in float64.

    It is 1 for two arrays of zeros, and 0 if only one of them is zero throughout.
    """
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    norms = math.sqrt(a @ a) * math.sqrt(b @ b)
    if norms == 0:
        return float(not a.any() and not b.any())
    return max(-1.0, min(1.0, float(a @ b) / norms))


def signal_to_noise(given: np.ndarray, reference: np.ndarray) -> float:
    """The signal-to-noise ratio in dB, in float64: 10 log10(sum of reference^2 / sum of (given - reference)^2).

    It is infinite for equal arrays, and minus infinite for a reference that is zero throughout.
    """
    truth = reference.astype(np.float64)
    signal, noise = float(np.square(truth).sum()), float(np.square(given.astype(np.float64) - truth).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def rank(value: float) -> float:
    """For looking for the largest difference: NaN is worse than any number."""
    return math.inf if math.isnan(value) else value
