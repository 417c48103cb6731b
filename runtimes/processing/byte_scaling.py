"""Rescaling and normalising uint8 pixels, with few passes over memory.

A uint8 pixel has 256 values, so there are 256 results for each channel: a table of them has every number exactly. Looking up
is not the fastest way to it, because numpy widens each index to 8 bytes. Where two or three steps in float32 give the whole
table bit for bit, they take its place. Each of them is one instruction for 8 or 16 pixels, on rows that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

import numpy as np

Steps = Sequence[tuple[np.ufunc, np.ndarray]]  # an operation, and its second operand for each channel: float32 (C,)

# Pixels that are scaled at a time: as float32 they fill half of a small CPU's second cache at most.
STRIP = 1 << 14


def scale_bytes(planes: Iterable[np.ndarray], out: np.ndarray, table: np.ndarray, steps: Optional[Steps]) -> None:
    """Writes `table[c, planes[c]]` into the top left of `out[c]`.

    Args:
        planes: C arrays uint8 (h, w), of any strides.
        out: float32 (C, H, W), of any strides, at least as large as the planes.
        table: float32 (C, 256).
        steps: what gives the same numbers (see `exact`), or None.
    """
    for channel, (plane, target) in enumerate(zip(planes, out)):
        height, width = plane.shape
        rows = max(1, STRIP // width)
        for top in range(0, height, rows):
            strip = plane[top : top + rows]
            block = target[top : top + len(strip), :width]
            if steps is None:
                block[...] = table[channel][strip]
                continue
            block[...] = strip
            for operation, values in steps:
                operation(block, values[channel], out=block)


def exact(steps: Steps, table: np.ndarray) -> Optional[Steps]:
    """The steps, if they give every number of the table bit for bit, and all are finite; otherwise None."""
    values = np.tile(np.arange(256, dtype=np.float32), (len(table), 1))
    with np.errstate(all="ignore"):  # steps with infinite operands give other numbers
        for operation, operands in steps:
            operation(values, operands[:, None], out=values)
    return steps if np.array_equal(values, table) and np.isfinite(values).all() else None
