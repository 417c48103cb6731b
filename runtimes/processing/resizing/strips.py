"""Pillow's `resize` in strips, bit for bit: no whole copy of an array, and several threads.

Pillow resizes the width first, and each row by itself, and then the height, and each column by itself. So strips of rows
become narrower, and then strips of columns become shorter or taller. A strip stays in the CPU's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

import numpy as np
from PIL import Image

from detr_export.runtimes.processing.frames import frame_to_image
from detr_export.runtimes.processing.threads import in_threads, processing_threads

_ROWS_FIRST = 2  # Pillow 13 resizes the height first if more than this many times as many rows as columns are lost
# What is resized at once: little enough for a CPU's cache, and enough that a call costs little.
_ROWS = 64
_COLUMNS = 256
_WORTH_CUTTING = 256  # rows of an image, before or after


@dataclass(frozen=True)
class ResizedFrame:
    """An image that is resized when it is used."""

    frame: Union[np.ndarray, Image.Image]  # uint8 (H, W, 3) of any strides, or an RGB image
    height: int
    width: int
    resample: int  # the number of one of Pillow's filters

    def image(self) -> Image.Image:
        """The resized image."""
        resized = Image.new("RGB", (self.width, self.height), None)
        self.each_strip(lambda left, strip: resized.paste(strip, (left, 0)))
        return resized

    def each_strip(self, use: Callable[[int, Image.Image], None]) -> None:
        """Calls `use` with strips of the resized image and their leftmost columns, in several threads and in any order.

        A frame that loses many more rows than columns is one strip, because Pillow 13 begins with its height. So is an image
        without other threads: cutting it would only take time.
        """
        in_height, in_width = _size(self.frame)
        lost = in_height - self.height
        alone = processing_threads() == 1
        if isinstance(self.frame, Image.Image) and (alone or max(in_height, self.height) < _WORTH_CUTTING):
            use(0, self._resized(self.frame, self.height))
            return
        if lost > 0 and lost > _ROWS_FIRST * (in_width - self.width):
            use(0, self._resized(_rows(self.frame, 0, in_height), self.height))
            return
        narrowed = Image.new("RGB", (self.width, in_height), None)

        def narrow(top: int) -> None:
            strip = _rows(self.frame, top, min(top + _ROWS, in_height))
            narrowed.paste(self._resized(strip, strip.height), (0, top))

        def finish(left: int) -> None:
            strip = narrowed.crop((left, 0, min(left + _COLUMNS, self.width), in_height))
            use(left, strip.resize((strip.width, self.height), resample=self.resample))

        in_threads(narrow, range(0, in_height, _ROWS))
        in_threads(finish, range(0, self.width, _COLUMNS))

    def _resized(self, image: Image.Image, height: int) -> Image.Image:
        return image.resize((self.width, height), resample=self.resample)


def _size(frame: Union[np.ndarray, Image.Image]) -> tuple[int, int]:
    return (frame.height, frame.width) if isinstance(frame, Image.Image) else (frame.shape[0], frame.shape[1])


def _rows(frame: Union[np.ndarray, Image.Image], top: int, bottom: int) -> Image.Image:
    """Some rows of a frame. BGR pixels are swapped with that."""
    if isinstance(frame, Image.Image):
        return frame.crop((0, top, frame.width, bottom))
    return frame_to_image(frame[top:bottom])
