"""Rescaling and normalising uint8 pixels, with few passes over memory.

A uint8 pixel has 256 values, so there are 256 results for each channel: a table of them has every number exactly. Looking up
is not the fastest way to it, because numpy widens each index to 8 bytes. Where two or three steps in float32 give the whole
table bit for bit, they take its place. Each of them is one instruction for 8 or 16 pixels, on rows that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Steps = Sequence[tuple[np.ufunc, np.ndarray]]  # an operation, and its second operand for each channel: float32 (C,)

# Pixels that are scaled at a time: as float32 they fill half of a small CPU's second cache at most.
STRIP = 1 << 14


def scale_bytes(planes: Iterable[np.ndarray], table: np.ndarray, steps: Steps, out: np.ndarray) -> None:
    """Writes `table[c, planes[c]]` into the top left of `out[c]`.

    Args:
        planes: C arrays uint8 (h, w), of any strides.
        table: float32 (C, 256).
        steps: what should give the same numbers. It is not used if it gives others.
        out: float32 (C, H, W), of any strides, at least as large as the planes.
    """
    calculated = np.array_equal(_by_steps(steps, len(table)), table)
    for channel, (plane, target) in enumerate(zip(planes, out)):
        height, width = plane.shape
        rows = max(1, STRIP // width)
        for top in range(0, height, rows):
            strip = plane[top : top + rows]
            block = target[top : top + len(strip), :width]
            if calculated:
                block[...] = strip
                for operation, values in steps:
                    operation(block, values[channel], out=block)
            else:
                block[...] = table[channel][strip]


def _by_steps(steps: Steps, channels: int) -> np.ndarray:
    """float32 (C, 256): what the steps make of every uint8 value."""
    values = np.tile(np.arange(256, dtype=np.float32), (channels, 1))
    with np.errstate(all="ignore"):  # steps with infinite operands give other numbers, and are not used then
        for operation, operands in steps:
            operation(values, operands[:, None], out=values)
    return values
