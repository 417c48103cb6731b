"""Writes labels on coloured plates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from detr_export.runtimes.results.fonts import font_of
from detr_export.runtimes.results.label_places import place_labels

Color = tuple[int, int, int]

_MARGIN_SHARE = 0.15  # of the size of letters: between the letters and the edge of the plate
_TALL = "Agjpqy|"  # letters as high and as low as letters are
_LEAST_LUMINANCE = 140  # of a plate with black letters, from 0 to 255


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
    margin = max(1, round(font_size * _MARGIN_SHARE))
    fonts = [font_of(text, font_size) for text in texts]
    # Plates of one font have one height, so that they stand in line
    inks = [draw.textbbox((0, 0), text, font=font) for text, font in zip(texts, fonts)]
    lines = [draw.textbbox((0, 0), text + _TALL, font=font) for text, font in zip(texts, fonts)]
    sizes = np.array(
        [(ink[2] - ink[0] + 2 * margin, line[3] - line[1] + 2 * margin) for ink, line in zip(inks, lines)], dtype=float
    ).reshape(-1, 2)
    anchors = np.asarray(boxes, dtype=float).reshape(-1, 4)
    if centred:
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        anchors = np.concatenate([middles - sizes * (0.5, -0.5), middles + sizes * 0.5], axis=1)
    corners = place_labels(anchors, sizes, (image.height, image.width))
    for index in reversed(range(len(texts))):
        (x, y), (width, height), color = corners[index].round(), sizes[index], colors[index]
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        place = (x + margin - inks[index][0], y + margin - lines[index][1])
        draw.text(place, texts[index], font=fonts[index], fill="black" if luminance > _LEAST_LUMINANCE else "white")
