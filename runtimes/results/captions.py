"""Writes labels on coloured plates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from detr_export.runtimes.results.fonts import Font, can_draw, font_of
from detr_export.runtimes.results.label_places import place_labels

Color = tuple[int, int, int]
_MEASURE = ImageDraw.Draw(Image.new("RGB", (1, 1)))

_MARGIN_SHARE = 0.12  # of the size of letters: between the letters and the edge of the plate
_TALL = "Adgjpqy"  # letters as high and as low as letters are
_CUT = "..."  # stands for what is left out of a name
_LEAST_LUMINANCE = 140  # of a plate with black letters, from 0 to 255


def caption_of(name: str, label: int, score: Optional[float], font_size: int, room: int) -> str:
    """The text of a label: the name of its class and the score, in letters that can be drawn.

    Args:
        name: of the class. Where it cannot be drawn, `#` and the id of the class stand for it.
        label: the id.
        score: two digits are shown; None for no score.
        font_size: pixels.
        room: width of the picture, pixels. A name that is too long for it is cut, and the score stays.
    """
    name, ending = name if can_draw(name) else f"#{label}", "" if score is None else f" {score:.2f}"
    if plate_size(name + ending, font_size)[0] <= room:
        return name + ending
    fits, too_long = 0, len(name)  # letters that are kept
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if plate_size(name[:middle] + _CUT + ending, font_size)[0] <= room:
            fits = middle
        else:
            too_long = middle
    return name[:fits] + _CUT + ending


def plate_size(text: str, font_size: int) -> tuple[int, int]:
    """The (width, height) of a label, pixels. Labels in one font have one height, so that they stand in line."""
    plate = _plate(text, font_size)
    return plate.width, plate.height


def write_captions(
    image: Image.Image,
    boxes: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[Color],
    font_size: int,
    centred: bool = False,
) -> None:
    """Writes a label for each box onto an image, see `place_labels`.

    Args:
        image: is changed.
        boxes: float (N, 4), (x_min, y_min, x_max, y_max), pixels. The first has the first choice of a place, and is on top.
        texts: of the labels.
        colors: of their plates.
        font_size: pixels.
        centred: whether the middle of a label is to be at the middle of its box, as long as there is room.
    """
    draw = ImageDraw.Draw(image)
    plates = [_plate(text, font_size) for text in texts]
    sizes = np.array([(plate.width, plate.height) for plate in plates], dtype=float).reshape(-1, 2)
    anchors = np.asarray(boxes, dtype=float).reshape(-1, 4)
    if centred:
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        anchors = np.concatenate([middles - sizes * (0.5, -0.5), middles + sizes * 0.5], axis=1)
    corners = place_labels(anchors, sizes, (image.height, image.width))
    for plate, text, color, corner in reversed([*zip(plates, texts, colors, corners.round())]):
        x, y = corner.tolist()
        draw.rectangle((x, y, x + plate.width - 1, y + plate.height - 1), fill=color)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        letters = "black" if luminance > _LEAST_LUMINANCE else "white"
        draw.text((x + plate.offset[0], y + plate.offset[1]), text, font=plate.font, fill=letters)


@dataclass(frozen=True)
class _Plate:
    """A label before it has a place."""

    font: Font
    width: int  # pixels
    height: int
    offset: tuple[float, float]  # (x, y) from its corner to where its text begins


def _plate(text: str, font_size: int) -> _Plate:
    font, margin = font_of(text, font_size), max(1, round(font_size * _MARGIN_SHARE))
    left, _, right, _ = _MEASURE.textbbox((0, 0), text, font=font)
    _, top, _, bottom = _MEASURE.textbbox((0, 0), text + _TALL, font=font)
    width, height = (int(np.ceil(side)) + 2 * margin for side in (right - left, bottom - top))
    return _Plate(font, width, height, (margin - left, margin - top))
