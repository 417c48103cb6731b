"""Pictures of predictions."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from runtimes.errors import ImageError
from runtimes.processing.images import ImageSource, load_image

if TYPE_CHECKING:
    from runtimes.results import Detections

_GOLDEN_RATIO = 0.618034  # steps of the hue: any run of neighbouring labels gets well separated colours
_LINE_SHARE = 1 / 300  # of the image's longer side
_TEXT_SHARE = 1 / 45
_MIN_TEXT, _MAX_TEXT = 10, 40  # pixels


def color_of(index: int) -> tuple[int, int, int]:
    """A saturated RGB colour for a label or segment, the same one every time."""
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(source: ImageSource, detections: Detections) -> Image.Image:
    """A copy of the image with boxes, the best score on top, captions kept inside the picture."""
    image = matching_image(source, detections.image_size)
    draw = ImageDraw.Draw(image)
    font = font_for(image)
    line = max(1, round(max(image.size) * _LINE_SHARE))
    for index in detections.scores.argsort(kind="stable"):
        color = color_of(int(detections.labels[index]))
        x_min, y_min, x_max, y_max = (float(value) for value in detections.boxes[index])
        draw.rectangle((x_min, y_min, max(x_max, x_min), max(y_max, y_min)), outline=color, width=line)
        caption(draw, font, (x_min, y_min), f"{detections.names[index]} {detections.scores[index]:.2f}", color)
    return image


def matching_image(source: ImageSource, size: tuple[int, int]) -> Image.Image:
    """Loads an image to draw on.

    Raises:
        ImageError: it cannot be read, or is not `size` (height, width).
    """
    image = load_image(source)
    if (image.height, image.width) != tuple(size):
        raise ImageError(f"the image is {image.height}x{image.width}; the prediction is of one of {size[0]}x{size[1]}")
    return image.copy()


def font_for(image: Image.Image) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, sized to the image where Pillow can (10.1 and later)."""
    size = min(_MAX_TEXT, max(_MIN_TEXT, round(max(image.size) * _TEXT_SHARE)))
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def caption(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    corner: tuple[float, float],
    text: str,
    color: tuple[int, int, int],
) -> None:
    """Writes text on a plate above `corner` (x, y), or below it where there is no room."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0.0, corner[0]), max(0.0, draw.im.size[0] - width))
    y = corner[1] - height if corner[1] >= height else max(0.0, corner[1])
    draw.rectangle((x, y, x + width, y + height), fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text((x + 2 - left, y + 2 - top), text, font=font, fill="black" if luminance > 140 else "white")
