"""Targets that read pictures: from bytes, and their sizes from the header of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Function, OutOfRangeError, Target


def _picture(folder: Path) -> Function:
    from detr_export.runtimes.processing.images import load_image

    def read(data: bytes) -> None:
        picture = load_image(data)
        if picture.mode != "RGB" or 0 in picture.size or np.asarray(picture).dtype != np.uint8:
            raise OutOfRangeError(f"a picture of mode {picture.mode} and size {picture.size}")

    return read


def _picture_size(folder: Path) -> Function:
    from detr_export.runtimes.processing.images import read_image_size

    file = folder / "picture"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        if min(read_image_size(file)) < 1:
            raise OutOfRangeError("a picture without pixels")

    return read


TARGETS = (
    Target("picture", _picture, mutate_bytes, 60_000, 1_200),
    Target("picture-size", _picture_size, mutate_bytes, 20_000, 600),
)
