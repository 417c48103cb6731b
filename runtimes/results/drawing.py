"""Draws predictions on images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.processing.images import ImageSource, borrow_image
from detr_export.runtimes.results.captions import caption_of, plate_size, write_captions
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.segments import Segment

_GOLDEN_RATIO = 0.618034  # step of the hue from one label to the next; it gives neighbouring labels very different colours
_TINT = 0.5  # share of a segment's colour in its pixels
_CELL_TINT = 0.3  # the same of a shaded cell, whose text is to stay readable
_OUTLINE = 1  # number of the colour of the outlines of a table's cells
_BAND_PIXELS = 1 << 20  # of a large picture that are drawn at a time
_COARSE = 100  # pixels of the longer side of a mask in which a place for a name is looked for
_CAPTION_AREA = 1 / 400  # share of the image; segments that are smaller are drawn without their name


def color_of(index: int) -> tuple[int, int, int]:
    """A saturated RGB colour for a label or segment. It is the same every time."""
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    source: ImageSource,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    style: DrawingStyle = PLAIN,
) -> Image.Image:
    """A copy of the image with boxes and captions. The best score is on top, and captions are placed by `place_labels`.

    Args:
        source: the image.
        image_size: the (height, width) that it must have, pixels.
        boxes: float32 (N, 4), (x_min, y_min, x_max, y_max), pixels.
        scores: float32 (N,).
        labels: int64 (N,). A label has the same colour in every picture.
        names: the names of the N labels.
        style: how they look.

    Raises:
        ImageError: the image cannot be read, or has another size.
    """
    image = matching_image(source, image_size).copy()
    image.info.clear()  # or a copy would be saved with the original's resolution and colour profile
    draw = ImageDraw.Draw(image)
    line = style.line(max(image.size))
    order = scores.argsort(kind="stable")[::-1]  # the best first
    colors = [color_of(int(labels[index])) for index in order]
    for index, color in zip(order[::-1], colors[::-1]):
        draw.rectangle(_drawable(boxes[index]), outline=color, width=line)
    if style.labels:
        size = style.text(max(image.size))
        texts = [caption_of(names[index], int(labels[index]), scores[index], size, image.width) for index in order]
        write_captions(image, boxes[order], texts, colors, size)
    return image


def _drawable(box: np.ndarray) -> tuple[float, float, float, float]:
    """Pillow refuses a box whose ends are in the wrong order."""
    x_min, y_min, x_max, y_max = (float(value) for value in box)
    return x_min, y_min, max(x_max, x_min), max(y_max, y_min)


def matching_image(source: ImageSource, size: tuple[int, int]) -> Image.Image:
    """Loads the image of a prediction. It may be `source` itself, so it is not to be drawn on.

    Raises:
        ImageError: it cannot be read, or is not `size` (height, width).
    """
    image = borrow_image(source)
    if (image.height, image.width) != tuple(size):
        raise ImageError(f"the image is {image.height}x{image.width}; the prediction is for an image of {size[0]}x{size[1]}")
    return image


def draw_segments(
    source: ImageSource, ids: np.ndarray, segments: Sequence[Segment], style: DrawingStyle = PLAIN
) -> Image.Image:
    """A copy of the image with a translucent colour and an outline for each segment, and the names of all but small ones.

    Args:
        source: the image.
        ids: int32 (height, width), the segment id of each pixel.
        segments: the segments with these ids.
        style: how labels look.

    Raises:
        ImageError: the image cannot be read, or has another size than `ids`.
        InputError: the style has a line width. The outlines of segments are one pixel wide.
    """
    if style.line_width is not None:
        raise InputError("segments have outlines of one pixel; leave line_width (--line-width) out")
    image = matching_image(source, (ids.shape[0], ids.shape[1]))
    largest = max((segment.id for segment in segments), default=0)
    # For each id the share of the image's own colour, and what its segment adds
    kept = np.ones((max(largest, int(ids.max())) + 1, 1), dtype=np.float32)
    added = np.zeros((len(kept), 3), dtype=np.float32)
    for segment in segments:
        kept[segment.id] = 1 - _TINT
        added[segment.id] = np.array(color_of(segment.id), dtype=np.float32) * _TINT
    drawn = Image.new("RGB", image.size)
    for rows in bands(ids):
        band = np.asarray(image.crop((0, rows.start, image.width, min(rows.stop, image.height))))
        pixels = (band * kept[ids[rows]] + added[ids[rows]]).round().astype(np.uint8)
        below = ids[rows.start : rows.stop + 1]  # the first row of the next band decides on the last borders of this one
        pixels[_borders(below)[: len(pixels)]] = 255
        drawn.paste(Image.fromarray(pixels), (0, rows.start))
    image = drawn
    size = style.text(max(image.size))
    # A name is not to cover more than its segment, nor is every speck to have one
    named = [segment for segment in segments if style.labels and segment.area >= _CAPTION_AREA * ids.size]
    texts = {item.id: caption_of(item.name, item.label, item.score, size, image.width) for item in named}
    named = [segment for segment in named if segment.area >= math.prod(plate_size(texts[segment.id], size))]
    named.sort(key=lambda segment: -segment.area)
    points = np.array([inner_point(ids == segment.id) * 2 for segment in named]).reshape(-1, 4)
    colors = [color_of(segment.id) for segment in named]
    write_captions(image, points, [texts[segment.id] for segment in named], colors, size, centred=True)
    return image


def draw_cells(
    source: ImageSource,
    image_size: tuple[int, int],
    cells: np.ndarray,
    shades: Sequence[Optional[int]],
    style: DrawingStyle = PLAIN,
) -> Image.Image:
    """A copy of the image with the outline of each cell of a table, and a translucent colour in some of them.

    Args:
        source: the image.
        image_size: the (height, width) that it must have, pixels.
        cells: float32 (N, 4), (x_min, y_min, x_max, y_max), pixels.
        shades: for each cell the number of its colour, or None.
        style: how wide the outlines are.

    Raises:
        ImageError: the image cannot be read, or has another size.
        InputError: the style says something of labels. Cells have none.
    """
    if style.font_size is not None or not style.labels:
        raise InputError("cells of tables have no labels; leave font_size (--font-size) and labels (--hide-labels) out")
    image = matching_image(source, image_size).copy()
    image.info.clear()  # as in `draw_boxes`
    shaded = image.copy()
    draw = ImageDraw.Draw(shaded)
    for box, shade in zip(cells.tolist(), shades):
        if shade is not None:
            draw.rectangle(box, fill=color_of(shade))
    image = Image.blend(image, shaded, _CELL_TINT)
    draw = ImageDraw.Draw(image)
    line = style.line(max(image.size))
    for box in cells.tolist():
        draw.rectangle(box, outline=color_of(_OUTLINE), width=line)
    return image


def draw_attention(
    source: ImageSource,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    attention: np.ndarray,
    columns: int = 3,
    cell_width: int = 480,
) -> Image.Image:
    """A sheet with one copy of the image for each detection, the best first. It shows where the query looked and its result.

    Args:
        source, image_size, boxes, scores, labels, names: as in `draw_boxes`.
        attention: (N, h, w) float32, weights over the feature map.
        columns: cells in a row.
        cell_width: width of a cell, pixels.

    Raises:
        ImageError: as in `draw_boxes`.
    """
    image = matching_image(source, image_size)
    height = max(1, round(cell_width * image.height / image.width))
    count = max(1, len(scores))
    sheet = Image.new("RGB", (cell_width * min(columns, count), height * -(-count // columns)), "black")
    small = image.resize((cell_width, height))
    if not len(scores):
        sheet.paste(small)
    for cell, index in enumerate((-scores).argsort(kind="stable")):
        picture = _heat(small, attention[index])
        color, box = color_of(int(labels[index])), boxes[index] * (cell_width / image.width)
        ImageDraw.Draw(picture).rectangle(_drawable(box), outline=color, width=2)
        size = PLAIN.text(max(picture.size))
        text = caption_of(names[index], int(labels[index]), scores[index], size, picture.width)
        write_captions(picture, box[None], [text], [color], size)
        sheet.paste(picture, (cell % columns * cell_width, cell // columns * height))
    return sheet


def _heat(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """The image in grey with its attention on top: dark where there is none, then red, and yellow where it is largest."""
    share = weights / max(float(weights.max()), 1e-12)
    mask = Image.fromarray((share * 255).round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    strength = np.asarray(mask, dtype=np.float32)[..., None] / 255
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    heat = np.concatenate([np.full_like(strength, 255), 255 * strength, np.zeros_like(strength)], axis=-1)
    tint = 0.75 * np.sqrt(strength)
    return Image.fromarray((0.6 * grey * (1 - tint) + heat * tint).round().astype(np.uint8))


def bands(pixels: np.ndarray) -> list[slice]:
    """Rows of an array (height, width, ...) to work on at a time, so that what is made of a large map stays small."""
    height, width = pixels.shape[:2]
    rows = max(1, _BAND_PIXELS // max(1, width))
    return [slice(top, top + rows) for top in range(0, height, rows)]


def _borders(ids: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another id."""
    borders = np.zeros(ids.shape, dtype=bool)
    borders[:, :-1] = ids[:, 1:] != ids[:, :-1]
    borders[:-1] |= ids[1:] != ids[:-1]
    return borders


def _mean(counts: np.ndarray) -> float:
    """The mean position of pixels of which so many, int64 (N,), are at each position. Sums below 2^53 are exact."""
    return float(np.dot(counts, np.arange(len(counts)))) / float(counts.sum())


def inner_point(mask: np.ndarray) -> tuple[float, float]:
    """A pixel (x, y) of the mask (height, width) bool that is far from its edges; of several, one near the middle."""
    step = max(1, max(mask.shape) // _COARSE)
    coarse = mask[step // 2 :: step, step // 2 :: step]
    if not coarse.any():  # it is thin, and so is everything in it
        step, coarse = 1, mask
    # Pixels at the edges are taken away until the next layer would be the last one
    inner = coarse
    while inner.any():
        coarse, padded = inner, np.pad(inner, 1)
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    middle = _mean(mask.sum(axis=1)) / step, _mean(mask.sum(axis=0)) / step
    rows, columns = np.nonzero(coarse)
    best = np.argmin((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2)
    return float(columns[best] * step + step // 2), float(rows[best] * step + step // 2)
