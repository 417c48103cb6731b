"""Pictures that are made by integer arithmetic alone: the same bytes on every machine and with every version of NumPy.

NumPy's generators promise neither. Their normal numbers go through logarithms, which differ from processor to processor in
the last bit, and a new version may draw other numbers.
"""

from __future__ import annotations

import math

import numpy as np

_OBJECTS = 6


def noise_picture(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Coloured cells of four sizes with noise: uint8 (height, width, channels)."""
    values = _hashed((height, width, channels), seed, 0) % 41 - 20
    for stream, cells in enumerate((2, 5, 11, 23), 1):
        coarse = _hashed((cells, cells, channels), seed, stream) % 81 - 40
        rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
        values += coarse[rows[:, None], columns]
    return np.clip(128 + values, 0, 255).astype(np.uint8)


def shapes_picture(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Like a photograph: shaded ellipses and boxes before a gradient, with grain: uint8 (height, width, channels)."""
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    top, bottom = 96 + _hashed((2, channels), seed, 0) % 128
    picture = np.broadcast_to(top + (bottom - top) * y // height, (height, width, channels)).copy()
    for index, (row, column, tall, wide) in enumerate(_hashed((_OBJECTS, 4), seed, 1)):
        # Its centre, its radii, and how far each pixel is from the centre: 0 there, 256 on the ellipse.
        down, right = abs(y - row % height), abs(x - column % width)
        high, broad = 1 + height // 12 + tall % (1 + height // 5), 1 + width // 12 + wide % (1 + width // 5)
        far = ((down * broad) ** 2 + (right * high) ** 2) * 256 // (high * broad) ** 2
        inside = far <= 256 if index % 2 else (down <= high) & (right <= broad)
        color = _hashed((channels,), seed, 2 + index) % 256
        picture = np.where(inside, color - far * 48 // 256, picture)
    grain = _hashed(picture.shape, seed, 2 + _OBJECTS) % 7 - 3
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _hashed(shape: tuple[int, ...], seed: int, stream: int) -> np.ndarray:
    """Numbers in [0, 2^31) that look random: int64 of that shape, by SplitMix64 (Steele, Lea and Flood, 2014)."""
    start = np.uint64((seed * 64 + stream) << 32)
    mixed = (np.arange(1, 1 + math.prod(shape), dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(33)).astype(np.int64).reshape(shape)
