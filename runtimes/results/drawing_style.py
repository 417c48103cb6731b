"""How predictions are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from detr_export.runtimes.errors import InputError

# Sizes grow with the picture, but a large one is also looked at from nearer, so more slowly than its side.
_LINE_AT, _TEXT_AT = 2.5, 16.0  # pixels, in a picture whose longer side is 800
_SIDE = 800
_GROWTH = 0.8  # exponent
_LEAST_TEXT = 10  # pixels; smaller letters of Pillow's own font are hard to read


@dataclass(frozen=True)
class DrawingStyle:
    """How boxes and labels look.

    Raises:
        InputError: a size is below 1.
    """

    line_width: Optional[int] = None  # of boxes and cells, pixels; None: it follows from the size of the picture
    font_size: Optional[int] = None  # of labels, pixels; None: it follows from the size of the picture
    labels: bool = True  # whether there are labels

    def __post_init__(self) -> None:
        for name, option in (("line_width", "--line-width"), ("font_size", "--font-size")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} ({option}) is {value}; expected at least 1 pixel")

    def line(self, side: int) -> int:
        """The width of lines in a picture whose longer side has so many pixels."""
        return self.line_width or max(1, round(_LINE_AT * (side / _SIDE) ** _GROWTH))

    def text(self, side: int) -> int:
        """The size of letters there."""
        return self.font_size or max(_LEAST_TEXT, round(_TEXT_AT * (side / _SIDE) ** _GROWTH))


PLAIN = DrawingStyle()
