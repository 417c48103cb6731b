"""Pictures of tables with exact boxes, for training a model that reads the structure of tables.

The classes, and what their boxes mean, are those of PubTables-1M (Smock et al. 2022): rows and columns tile the table, the
header is the union of its rows, and a picture is a table with a margin. Tables have all lines, some or none, shaded or bold
headers, words and numbers, and lines of text above and below. Picture i of a split depends on nothing but the split's name,
i, and the version of Pillow, whose own font is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.pubtables import STRUCTURE_LABELS
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.training.drawn_split import AnnotatedPicture, DrawnData, picture_generator, write_split
from detr_export.training.table_layout import PlacedTable, TableLayout, make_layout
from detr_export.training.table_painting import Painter, make_style

_LONG_SIDE = (256, 320)  # pixels
_CROWDED = 296  # pixels of the long side, at least, where there are many rows or columns
_MARGINS = (0.03, 0.12)  # share of the picture, on each side
_NOTE = 0.4  # probability of text above the table, and of text below it
_NOTE_MARGIN = 0.09  # share of the picture, at least, where there is such text

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class TablePicture:
    """One picture of a table, and the table in it."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB
    table: PlacedTable

    @property
    def objects(self) -> list[tuple[int, Box]]:
        """What is annotated: for each object the id of its class and its box, (x_min, y_min, x_max, y_max), maxima
        exclusive, pixels."""
        layout, box = self.table.layout, self.table.box
        all_rows, all_columns = (0, layout.rows), (0, layout.columns)
        found = [(0, box(all_rows, all_columns))]
        found += [(1, box(all_rows, (column, column + 1))) for column in range(layout.columns)]
        found += [(2, box((row, row + 1), all_columns)) for row in range(layout.rows)]
        if layout.header_rows:
            found.append((3, box((0, layout.header_rows), all_columns)))
        found += [(4, box(cell.rows, cell.columns)) for cell in layout.cells if cell.is_projected_row_header]
        found += [(5, box(cell.rows, cell.columns)) for cell in layout.cells if cell.is_spanning]
        return found


def draw_picture(split: str, index: int) -> TablePicture:
    """Draws picture `index` of a split; the same for the same arguments and version of Pillow.

    Raises:
        BackendError: Pillow is too old to write text in several sizes.
    """
    generator = picture_generator(split, index)
    layout = make_layout(generator)
    numeric = [False, *(generator.random(layout.columns - 1) < 0.65).tolist()]  # the first column names the rows
    notes = (generator.random(2) < _NOTE).tolist()
    table, size, row_height = _place(generator, layout, numeric, notes)
    style = make_style(generator, numeric, row_height)
    pixels = Painter(generator, table, style, size).paint(notes) * generator.uniform(0.93, 1)
    pixels = pixels + generator.normal(0, generator.uniform(0.3, 4), pixels.shape)
    return TablePicture(pixels.round().clip(0, 255).astype(np.uint8), table)


def write_table_data(directory: str | Path, images: int, split: str = "train", progress: Progress = SILENT) -> Path:
    """Writes a split with its instances annotations; arguments and errors as in `write_split` and `draw_picture`."""
    return write_split(directory, images, split, TABLES, progress)


def _annotated_picture(split: str, index: int) -> AnnotatedPicture:
    picture = draw_picture(split, index)
    return AnnotatedPicture(picture.pixels, [_annotation(label, box) for label, box in picture.objects], [])


def _annotation(label: int, box: Box) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    outline = [left, top, right, top, right, bottom, left, bottom]
    area = width * height
    return {"category_id": label, "area": area, "bbox": [left, top, width, height], "iscrowd": 0, "segmentation": [outline]}


def _place(
    generator: np.random.Generator, layout: TableLayout, numeric: list[bool], notes: list[bool]
) -> tuple[PlacedTable, tuple[int, int], float]:
    """Chooses where the table and its borders are.

    Returns:
        The table; (width, height) of the picture; and the height of a row with one line of text, pixels.
    """
    # Relative sizes: columns of numbers are narrower, and some rows have room for two lines.
    crowded = layout.columns >= 5 or layout.rows >= 8
    column_width = generator.uniform(36, 48 if layout.columns >= 5 else 75)
    low, high = np.where(numeric, 0.7, 1.0), np.where(numeric, 1.05, 1.7)
    widths = column_width * generator.uniform(low, high)
    row_height = generator.uniform(18, 27)
    tall = generator.random(layout.rows) < generator.choice([0.0, 0.3])
    heights = row_height * np.where(tall, 1.75, 1) * generator.uniform(0.95, 1.05, layout.rows)

    # The picture is the table with its margins, scaled to the wanted size.
    margins = generator.uniform(*_MARGINS, 4)  # left, right, top, bottom
    margins[2:] = np.where(notes, np.maximum(margins[2:], _NOTE_MARGIN), margins[2:])
    width, height = widths.sum() / (1 - margins[:2].sum()), heights.sum() / (1 - margins[2:].sum())
    long_side = generator.integers(_CROWDED if crowded else _LONG_SIDE[0], _LONG_SIDE[1], endpoint=True)
    scale = long_side / max(width, height)
    size = (round(width * scale), round(height * scale))
    x = margins[0] * size[0] + np.cumsum([0.0, *widths]) * scale
    y = margins[2] * size[1] + np.cumsum([0.0, *heights]) * scale
    table = PlacedTable(layout, tuple(x.round().astype(int).tolist()), tuple(y.round().astype(int).tolist()))
    return table, size, row_height * scale


TABLES = DrawnData(
    name="tables",
    description="Tables, drawn by detr-export",
    categories=[{"id": id_, "name": name, "supercategory": "table"} for id_, name in STRUCTURE_LABELS.items()],
    panoptic_categories=None,
    draw=_annotated_picture,
)
