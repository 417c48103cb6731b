"""The pictures that models are measured on: a folder's, or synthetic ones; and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detr_export.runtimes.processing.image_paths import iter_image_paths
from detr_export.runtimes.processing.images import load_image

USUAL_SIZE = (480, 640)  # height and width of most pictures of COCO
_MOST_BATCHES = 8  # different ones, of a folder of images


def synthetic_picture(seed: int = 0, size: tuple[int, int] = USUAL_SIZE) -> np.ndarray:
    """A picture with structure at several scales, the same for the same seed.

    Args:
        seed: of the random generator.
        size: height and width in pixels.

    Returns:
        RGB, (height, width, 3) uint8.
    """
    generator = np.random.default_rng(seed)
    height, width = size
    picture = generator.normal(128, 15, (height, width, 3))
    for cells in (2, 5, 11, 23):
        rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
        picture += generator.normal(0, 30, (cells, cells, 3))[rows[:, None], columns]
    return picture.round().clip(0, 255).astype(np.uint8)


def load_pictures(images: str | Path, batch: int) -> list[np.ndarray]:
    """Pictures of a folder, spread evenly over its files: enough for all different batches of this size.

    Returns:
        RGB, each (height, width, 3) uint8.

    Raises:
        ImageError: the folder holds no images, or one that cannot be read.
    """
    paths = iter_image_paths(str(images))
    wanted = min(len(paths), _MOST_BATCHES * batch)
    return [np.asarray(load_image(paths[index * len(paths) // wanted])) for index in range(wanted)]


def make_batches(pictures: Sequence[np.ndarray], batch: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """Batches of `batch` pictures each. Where the last batch is not full, it is filled with the first pictures again."""
    count = min(_MOST_BATCHES, -(-len(pictures) // batch))
    return tuple(
        tuple(pictures[(start + index) % len(pictures)] for index in range(batch))
        for start in range(0, count * batch, batch)
    )
