"""`Table`, a table as a grid of cells, and how it is put together from detections of rows, columns, headers and cells.

The classes are those of Table Transformer (Smock et al. 2022), and are known by their names. The steps follow the idea of
microsoft/table-transformer's post-processing; the code is our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from PIL import Image

from detr_export.runtimes.processing.images import ImageSource
from detr_export.runtimes.results.detections import Detections, not_ours
from detr_export.runtimes.results.drawing import draw_cells
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.other_libraries import for_pandas
from detr_export.runtimes.results.values import Value

TABLE, COLUMN, ROW = "table", "table column", "table row"
HEADER, PROJECTED, SPANNING = "table column header", "table projected row header", "table spanning cell"
REQUIRED = (ROW, COLUMN)  # classes without which there is no grid

_MOST_OVERLAP = 0.5  # two rows that share more than this of the shorter one are one row; so are columns and tables
_COVERED = 0.5  # what an object covers by more than this share belongs to it
_X, _Y = 0, 1
_HEADER_SHADE, _PROJECTED_SHADE = 2, 5  # numbers of colours

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cell(Value):
    """One cell. It covers one position of the grid, or a block of several."""

    rows: Range  # the first row, and the one after the last; from 0 at the top
    columns: Range  # the first column, and the one after the last; from 0 at the left
    box: np.ndarray  # (4,) float32, (x_min, y_min, x_max, y_max) in pixels of the image
    is_column_header: bool  # whether it belongs to the header at the top
    is_projected_row_header: bool  # whether it is a heading between rows, across all columns
    score: float  # of the object that merged it; otherwise of its row or its column, whichever is lower

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields of the cell under their names."""
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "box": self.box.tolist(),
            "is_column_header": self.is_column_header,
            "is_projected_row_header": self.is_projected_row_header,
            "score": self.score,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Cell:
        """The cell of which `to_dict` made a document. Raises InputError if a field is missing or of another type."""
        try:
            (top, bottom), (left, right) = document["rows"], document["columns"]
            return cls(
                (int(top), int(bottom)),
                (int(left), int(right)),
                _box_of(document["box"]),
                bool(document["is_column_header"]),
                bool(document["is_projected_row_header"]),
                float(document["score"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise not_ours("cell", "Cell", error) from error


@dataclass(frozen=True, eq=False)
class Table(Value):
    """One table of an image. Its cells cover each position of the grid of rows and columns exactly once."""

    box: np.ndarray  # (4,) float32, (x_min, y_min, x_max, y_max) in pixels of the image
    rows: np.ndarray  # (R, 4) float32, from top to bottom, as wide as the table
    columns: np.ndarray  # (C, 4) float32, from left to right, as high as the table
    cells: tuple[Cell, ...]  # by their first row, then by their first column; none if there are no rows or no columns
    image_size: tuple[int, int]  # (height, width) of the image, pixels

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `image_size`, `box`, `rows` and `columns` (boxes), and `cells`."""
        return {
            "image_size": list(self.image_size),
            "box": self.box.tolist(),
            "rows": self.rows.tolist(),
            "columns": self.columns.tolist(),
            "cells": [cell.to_dict() for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Table:
        """The table of which `to_dict` made a document, also after a way through JSON. Every number is the same again.

        Raises:
            InputError: a field is missing or of another type.
        """
        try:
            height, width = document["image_size"]
            return cls(
                _box_of(document["box"]),
                _boxes_of(document["rows"]),
                _boxes_of(document["columns"]),
                tuple(Cell.from_dict(cell) for cell in document["cells"]),
                (int(height), int(width)),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise not_ours("table", "Table", error) from error

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each cell, in their order; the boxes of rows and columns are left out.

        `row`, `row_end`, `column` and `column_end` are int64: the first one, and the one after the last. `is_column_header`
        and `is_projected_row_header` are bool; `score`, `x_min`, `y_min`, `x_max` and `y_max` are float32.

        Raises:
            BackendError: pandas cannot be imported.
        """
        cells = self.cells
        columns: dict[str, tuple[type, Any]] = {
            "row": (np.int64, [cell.rows[0] for cell in cells]),
            "row_end": (np.int64, [cell.rows[1] for cell in cells]),
            "column": (np.int64, [cell.columns[0] for cell in cells]),
            "column_end": (np.int64, [cell.columns[1] for cell in cells]),
            "is_column_header": (bool, [cell.is_column_header for cell in cells]),
            "is_projected_row_header": (bool, [cell.is_projected_row_header for cell in cells]),
            "score": (np.float32, [cell.score for cell in cells]),
        }
        boxes = np.array([cell.box for cell in cells], dtype=np.float32).reshape(-1, 4)
        columns.update({name: (np.float32, side) for name, side in zip(("x_min", "y_min", "x_max", "y_max"), boxes.T)})
        return for_pandas().frame_of(columns)

    def draw(self, image: ImageSource, style: DrawingStyle = PLAIN) -> Image.Image:
        """A copy of `image` with the outlines of the cells, or of the table if it has no cells. Headers are shaded.

        Args:
            image: the image of the table.
            style: how wide the outlines are.

        Raises:
            ImageError: the image cannot be read, or has another size than the image of the table.
            InputError: the style says something of labels.
        """
        return draw_tables(image, self.image_size, [self], style)


@dataclass(frozen=True, eq=False)
class _Objects:
    """Detections of one class, the best first."""

    boxes: np.ndarray  # (N, 4) float32
    scores: np.ndarray  # (N,) float32

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: np.ndarray) -> _Objects:
        return _Objects(self.boxes[which], self.scores[which])


@dataclass(frozen=True)
class _Block:
    """Positions that may become one cell."""

    rows: Range
    columns: Range
    score: float
    is_projected: bool

    @property
    def place(self) -> tuple[slice, slice]:
        return slice(*self.rows), slice(*self.columns)


def tables_from_detections(found: Detections) -> list[Table]:
    """Puts the tables of an image together.

    1. Of tables, of rows and of columns that overlap by more than half, the one with the best score stays.
    2. An object belongs to the table that contains its centre. If no table was found, all rows and columns are one table.
    3. Neighbouring rows, and neighbouring columns, meet in the middle between their edges, so cells leave no gap.
    4. Rows are those of the header if it covers more than half of their height, from the top row on, without a gap.
    5. A projected row header merges the row that it covers most, by more than half. It does so below the header only.
    6. A spanning cell merges the rows and columns that it covers by more than half, if these are at least two positions. It
       does not cross the lower edge of the header: it keeps the side on which it has more rows, the lower one if equal.
    7. If several objects want to merge the same position, the one with the best score gets it, and the others merge nothing.

    Args:
        found: what a model found whose classes have the names of Table Transformer's; upper and lower case are the same.

    Returns:
        The tables from top to bottom; none if there is neither a table nor a row or column.
    """
    objects = {kind: _of_kind(found, kind) for kind in (TABLE, COLUMN, ROW, HEADER, PROJECTED, SPANNING)}
    boxes = _distinct(objects[TABLE], (_X, _Y)).boxes
    parts = np.concatenate([objects[ROW].boxes, objects[COLUMN].boxes])
    if not len(boxes) and not len(parts):
        return []
    if not len(boxes):
        boxes = np.concatenate([parts[:, :2].min(axis=0), parts[:, 2:].max(axis=0)])[None]
    owners = {kind: _owners(boxes, of_kind.boxes) for kind, of_kind in objects.items()}
    return [
        _table(boxes[index], {kind: objects[kind][owners[kind] == index] for kind in objects}, found.image_size)
        for index in np.lexsort((boxes[:, 0], boxes[:, 1]))
    ]


def draw_tables(
    image: ImageSource, image_size: tuple[int, int], tables: Sequence[Table], style: DrawingStyle = PLAIN
) -> Image.Image:
    """A copy of `image` with all its tables. Size and errors are as in `draw_cells`, the picture is as in `Table.draw`."""
    boxes: list[np.ndarray] = []
    shades: list[Optional[int]] = []
    for table in tables:
        for cell in table.cells:
            boxes.append(cell.box)
            shades.append(
                _HEADER_SHADE if cell.is_column_header else _PROJECTED_SHADE if cell.is_projected_row_header else None
            )
        if not table.cells:
            boxes.append(table.box)
            shades.append(None)
    return draw_cells(image, image_size, np.array(boxes, dtype=np.float32).reshape(-1, 4), shades, style)


def _table(box: np.ndarray, objects: dict[str, _Objects], image_size: tuple[int, int]) -> Table:
    # The grid
    rows, columns = _in_order(_distinct(objects[ROW], (_Y,)), _Y), _in_order(_distinct(objects[COLUMN], (_X,)), _X)
    rows.boxes[:, [0, 2]] = box[[0, 2]]
    columns.boxes[:, [1, 3]] = box[[1, 3]]
    _close_gaps(rows.boxes, _Y)
    _close_gaps(columns.boxes, _X)

    if not len(rows) or not len(columns):
        return Table(box, rows.boxes, columns.boxes, (), image_size)

    # Which cells are merged: the best objects choose first.
    header_rows = _header_rows(rows.boxes, objects[HEADER].boxes)
    blocks = list(_projected_rows(objects[PROJECTED], rows.boxes, len(columns), header_rows))
    blocks += _spans(objects[SPANNING], rows.boxes, columns.boxes, header_rows)
    taken = np.zeros((len(rows), len(columns)), dtype=bool)
    merged = []
    for block in sorted(blocks, key=lambda block: -block.score):
        if not taken[block.place].any():
            taken[block.place] = True
            merged.append(block)

    # All other positions are cells of their own.
    for row, column in np.argwhere(~taken).tolist():
        score = float(min(rows.scores[row], columns.scores[column]))
        merged.append(_Block((row, row + 1), (column, column + 1), score, False))
    cells = []
    for block in sorted(merged, key=lambda block: (block.rows[0], block.columns[0])):
        first, last = columns.boxes[block.columns[0]], columns.boxes[block.columns[1] - 1]
        top, bottom = rows.boxes[block.rows[0]], rows.boxes[block.rows[1] - 1]
        corners = np.array([first[0], top[1], last[2], bottom[3]], dtype=np.float32)
        in_header = block.rows[0] < header_rows
        cells.append(Cell(block.rows, block.columns, corners, in_header, block.is_projected, block.score))
    return Table(box, rows.boxes, columns.boxes, tuple(cells), image_size)


def _header_rows(rows: np.ndarray, headers: np.ndarray) -> int:
    """How many rows, from the top on, a header covers by more than half."""
    covered = np.zeros(len(rows), dtype=bool)
    for header in headers:
        covered |= _shares(rows, header, _Y) > _COVERED
    return len(rows) if covered.all() else int(covered.argmin())


def _projected_rows(found: _Objects, rows: np.ndarray, columns: int, header_rows: int) -> Iterable[_Block]:
    for box, score in zip(found.boxes, found.scores.tolist()):
        shares = _shares(rows, box, _Y)
        row = int(shares.argmax())
        if row >= header_rows and shares[row] > _COVERED:
            yield _Block((row, row + 1), (0, columns), score, True)


def _spans(found: _Objects, rows: np.ndarray, columns: np.ndarray, header_rows: int) -> Iterable[_Block]:
    for box, score in zip(found.boxes, found.scores.tolist()):
        of_rows, of_columns = _range(_shares(rows, box, _Y)), _range(_shares(columns, box, _X))
        if of_rows is None or of_columns is None:
            continue
        first, end = of_rows
        if first < header_rows < end:
            of_rows = (first, header_rows) if header_rows - first > end - header_rows else (header_rows, end)
        if (of_rows[1] - of_rows[0]) * (of_columns[1] - of_columns[0]) > 1:
            yield _Block(of_rows, of_columns, score, False)


def _box_of(numbers: Any) -> np.ndarray:
    return np.array(numbers, dtype=np.float32).reshape(4)


def _boxes_of(numbers: Any) -> np.ndarray:
    return np.array(numbers, dtype=np.float32).reshape(len(numbers), 4)


# ---- boxes --------------------------------------------------------------------------------------------------------------


def _of_kind(found: Detections, kind: str) -> _Objects:
    """The detections of a class, the best first, without those that have no area."""
    chosen = np.array([name.lower() == kind for name in found.names], dtype=bool)
    chosen &= (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
    order = np.argsort(-found.scores, kind="stable")
    order = order[chosen[order]]
    return _Objects(found.boxes[order], found.scores[order])


def _distinct(found: _Objects, axes: tuple[int, ...]) -> _Objects:
    """The objects that overlap no better one along the axes by more than half of the smaller of the two."""
    sizes = np.prod([found.boxes[:, axis + 2] - found.boxes[:, axis] for axis in axes], axis=0)
    kept: list[int] = []
    for index, box in enumerate(found.boxes):
        overlaps = np.prod([_overlap(found.boxes[kept], box, axis) for axis in axes], axis=0)
        if not (overlaps > _MOST_OVERLAP * np.minimum(sizes[kept], sizes[index])).any():
            kept.append(index)
    return found[np.array(kept, dtype=np.int64)]


def _in_order(found: _Objects, axis: int) -> _Objects:
    """By their centres along an axis."""
    return found[np.argsort(found.boxes[:, axis] + found.boxes[:, axis + 2], kind="stable")]


def _close_gaps(boxes: np.ndarray, axis: int) -> None:
    """Moves the edges between neighbours to their middle: rows and columns tile a table, and what is found is a bit off."""
    middles = (boxes[:-1, axis + 2] + boxes[1:, axis]) / 2
    boxes[:-1, axis + 2] = middles
    boxes[1:, axis] = middles


def _owners(tables: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """For each box the first table that contains its centre, int64 (N,); -1 if none does."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((tables[:, None, :2] <= centers) & (centers <= tables[:, None, 2:])).all(axis=-1)  # (tables, boxes)
    return np.where(inside.any(axis=0), inside.argmax(axis=0), -1)


def _overlap(boxes: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """How long the part of each box along an axis is that is also in `other`; pixels, (N,)."""
    return np.maximum(np.minimum(boxes[:, axis + 2], other[axis + 2]) - np.maximum(boxes[:, axis], other[axis]), 0)


def _shares(boxes: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """The same as a share of each box's own length; 0 to 1, (N,)."""
    return _overlap(boxes, other, axis) / (boxes[:, axis + 2] - boxes[:, axis])


def _range(shares: np.ndarray) -> Optional[Range]:
    """From the first to the last that is covered by more than half. Those between are covered, since they are in order."""
    covered = np.flatnonzero(shares > _COVERED)
    return (int(covered[0]), int(covered[-1]) + 1) if len(covered) else None
