"""Pillow's `resize` of a frame, bit for bit, mostly without a copy of the whole frame.

Pillow resizes the width first, and each row by itself, and then the height. So strips of rows become narrower one after the
other. What is copied is one strip, which stays in the CPU's cache; BGR pixels are swapped with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np
from PIL import Image

from detr_export.runtimes.processing.frames import frame_to_image

_ROWS_FIRST = 2  # Pillow 13 resizes the height first if more than this many times as many rows as columns are lost
_ROWS = 64  # that are resized at once: few enough for a CPU's cache, and many enough that a call costs little


@dataclass(frozen=True)
class ResizedFrame:
    """An image that is resized when it is used."""

    frame: Union[np.ndarray, Image.Image]  # uint8 (H, W, 3) of any strides, or an RGB image
    height: int
    width: int
    resample: int  # the number of one of Pillow's filters

    def image(self) -> Image.Image:
        """The resized image.

        An image is resized as it is, and so is a frame that loses many more rows than columns, because Pillow 13 begins with
        its height.
        """
        if isinstance(self.frame, Image.Image):
            return self._resized(self.frame, self.height)
        in_height, in_width = self.frame.shape[:2]
        lost = in_height - self.height
        if lost > 0 and lost > _ROWS_FIRST * (in_width - self.width):
            return self._resized(frame_to_image(self.frame), self.height)
        narrowed = Image.new("RGB", (self.width, in_height))
        for top in range(0, in_height, _ROWS):
            strip = frame_to_image(self.frame[top : top + _ROWS])
            narrowed.paste(self._resized(strip, strip.height), (0, top))
        return self._resized(narrowed, self.height)

    def _resized(self, image: Image.Image, height: int) -> Image.Image:
        return image.resize((self.width, height), resample=self.resample)
