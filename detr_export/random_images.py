"""Images that are drawn at random and have structure, for comparing models."""

from __future__ import annotations

import numpy as np


def random_images(shape: tuple[int, int, int, int], seed: int = 0) -> np.ndarray:
    """Images with structure at every scale, with different contrasts and colours, roughly normalised.

    White noise alone averages out in the first pooling layers, and every image then looks the same to the transformer.

    Args:
        shape: (batch, channels, height, width).
        seed: of the generator.

    Returns:
        float32 of that shape.
    """
    generator = np.random.default_rng(seed)
    batch, channels, height, width = shape
    image = generator.normal(0, 0.3, shape)
    for cells in (2, 5, 11, 23):
        coarse = generator.normal(0, 1, (batch, channels, cells, cells))
        rows = np.arange(height) * cells // height
        columns = np.arange(width) * cells // width
        image += 0.6 * coarse[:, :, rows[:, None], columns]
    contrast = np.exp(generator.uniform(-1.5, 0.7, (batch, 1, 1, 1)))
    color = generator.normal(0, 1, (batch, channels, 1, 1))
    return (image * contrast + color).astype(np.float32)
