"""A picture that shows how a training run goes: predictions on a few validation pictures, beside what was annotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detr_export.data.splits import CocoSplit
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.captions import write_captions
from detr_export.runtimes.results.drawing import color_of, draw_boxes
from detr_export.runtimes.results.drawing_style import PLAIN

_PICTURES = 8
_COLUMNS = 2  # of pictures; each has two cells side by side: annotated, predicted
_CELL = 320  # pixels, the longer side of a picture
_GAP = 6
_BACKGROUND = (255, 255, 255)
_THRESHOLD = 0.3  # below that of `predict`, to see early what the model begins to find


def draw_grid(predictor: Predictor, split: CocoSplit) -> Image.Image:
    """The first pictures of a split in pairs: on the left with the annotated boxes, on the right with the predicted ones.

    A model that draws masks shows its panoptic segmentation on the right.
    """
    pairs = []
    for record in split.records[:_PICTURES]:
        image = load_image(record["image"])
        shown = image.copy()
        shown.thumbnail((_CELL, _CELL))
        pairs.append((_annotated(shown, image.size, record, split.id2label), _predicted(predictor, image, shown)))
    width = max(left.width for left, _ in pairs)
    rows = [pairs[start : start + _COLUMNS] for start in range(0, len(pairs), _COLUMNS)]
    heights = [max(left.height for left, _ in row) for row in rows]
    size = len(rows[0]) * (2 * width + 2 * _GAP) + _GAP, sum(heights) + (len(rows) + 1) * _GAP
    grid = Image.new("RGB", size, _BACKGROUND)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, pair in enumerate(row):
            x = _GAP + column * (2 * width + 2 * _GAP)
            for picture in pair:
                grid.paste(picture, (x, y))
                x += picture.width + 1
        y += height + _GAP
    return grid


def _annotated(
    shown: Image.Image, size: tuple[int, int], record: Mapping[str, Any], names: Mapping[int, str]
) -> Image.Image:
    """The boxes of a record on its picture, which is `size` (width, height) large when it is not made smaller."""
    picture = shown.copy()
    draw = ImageDraw.Draw(picture)
    objects = record["annotations"] if "annotations" in record else record["segments_info"]
    boxes = np.array([item["bbox"] for item in objects], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= [picture.width / size[0], picture.height / size[1]] * 2
    colors = [color_of(item["category_id"]) for item in objects]
    side = max(picture.size)
    for box, color in zip(boxes.tolist(), colors, strict=True):
        draw.rectangle(box, outline=color, width=PLAIN.line(side))
    texts = [names[item["category_id"]] for item in objects]
    write_captions(picture, boxes, texts, colors, PLAIN.text(side))
    return picture


def _predicted(predictor: Predictor, image: Image.Image, shown: Image.Image) -> Image.Image:
    if predictor.draws_masks:
        found = predictor.segment_panoptic(image)
        return found.draw(image).resize(shown.size)
    boxes = predictor.detect(image, threshold=_THRESHOLD)
    factor = np.array([shown.width / image.width, shown.height / image.height] * 2, dtype=np.float32)
    size = (shown.height, shown.width)
    return draw_boxes(shown, size, boxes.boxes * factor, boxes.scores, boxes.labels, boxes.names)
