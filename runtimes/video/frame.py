"""One frame of a video, upright."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_PLAIN = (1, 0, 0, 1)


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame, when it is shown, and its pixels."""

    number: int  # in the video, from 0; frames that are left out count
    stamp: Fraction  # seconds after the first frame, exactly
    pixels: np.ndarray  # (height, width, 3) uint8, RGB, upright

    @property
    def time(self) -> float:
        """Seconds after the first frame."""
        return float(self.stamp)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turns and mirrors pixels as a video's display matrix says.

    Args:
        pixels: (height, width, 3) uint8.
        matrix: the signs of a, b, c, d, where a pixel at (x, y) is shown at (a x + c y, b x + d y). One of the diagonals is
            zero.

    Returns:
        An array that lies in memory row by row.
    """
    a, b, c, d = matrix
    if matrix == _PLAIN:
        return pixels
    turned = pixels[::d, ::a] if a else pixels.transpose(1, 0, 2)[::b, ::c]
    return np.ascontiguousarray(turned)
