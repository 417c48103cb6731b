"""Makes up the structure of a table: how many rows and columns, which cells span several of them, and what is a header."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROWS, _COLUMNS = (2, 9), (2, 6)
_HEADER = 0.92  # probabilities
_PROJECTED = 0.25
_SPANNING = 0.35
_LONGEST_SPAN = 3  # rows or columns


@dataclass(frozen=True)
class GridCell:
    """One cell of a table, in rows and columns."""

    rows: tuple[int, int]  # the first row, and the one after the last
    columns: tuple[int, int]  # the same of columns
    is_column_header: bool = False
    is_projected_row_header: bool = False

    @property
    def is_spanning(self) -> bool:
        """Whether several rows or columns share the cell; a projected row header counts as a class of its own."""
        size = (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])
        return size > 1 and not self.is_projected_row_header


@dataclass(frozen=True)
class TableLayout:
    """The structure of a table. Its cells cover each position of the grid once."""

    rows: int
    columns: int
    header_rows: int  # at the top
    cells: tuple[GridCell, ...]  # row by row, by their first row and column


@dataclass(frozen=True)
class PlacedTable:
    """A table at its place in a picture."""

    layout: TableLayout
    x: tuple[int, ...]  # borders of the columns, pixels: one more than columns
    y: tuple[int, ...]  # borders of the rows, pixels: one more than rows

    def box(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[int, int, int, int]:
        """(x_min, y_min, x_max, y_max) of a block of the grid, pixels, maxima exclusive."""
        return self.x[columns[0]], self.y[rows[0]], self.x[columns[1]], self.y[rows[1]]


def make_layout(generator: np.random.Generator) -> TableLayout:
    """Makes up a table."""
    rows, columns = (int(generator.integers(*limits, endpoint=True)) for limits in (_ROWS, _COLUMNS))
    header = generator.random() < _HEADER
    projected = generator.random() < _PROJECTED
    spanning = generator.random() < _SPANNING
    two_rows = header and spanning and columns >= 3 and rows >= 4 and generator.random() < 0.7
    header_rows = 2 if two_rows else int(header)
    merged: list[GridCell] = []  # all cells that are larger than one position

    # Rows whose text spans all columns; each has a row below.
    free = np.arange(header_rows, rows - 1)
    if projected and len(free):
        apart = free[int(generator.integers(min(2, len(free)))) :: 2]
        chosen = generator.choice(apart, min(int(generator.integers(1, 3)), len(apart)), replace=False)
        merged += [GridCell((row, row + 1), (0, columns), is_projected_row_header=True) for row in chosen.tolist()]

    # Cells over two or three columns of the header, or rows of the body.
    if two_rows:
        merged += _header_spans(generator, columns)
    if spanning and (not two_rows or generator.random() < 0.3):
        taken = {cell.rows[0] for cell in merged if cell.is_projected_row_header}
        merged += _body_spans(generator, header_rows, rows, columns, taken)

    # Everything else is a cell of its own.
    covered = np.zeros((rows, columns), dtype=bool)
    for cell in merged:
        covered[slice(*cell.rows), slice(*cell.columns)] = True
    single = [
        GridCell((row, row + 1), (column, column + 1), is_column_header=row < header_rows)
        for row, column in np.argwhere(~covered).tolist()
    ]
    cells = sorted(merged + single, key=lambda cell: (cell.rows[0], cell.columns[0]))
    return TableLayout(rows, columns, header_rows, tuple(cells))


def _header_spans(generator: np.random.Generator, columns: int) -> list[GridCell]:
    """Groups of columns in the first of two header rows. A column outside of all groups has one cell in both rows."""
    spans = []
    column = 0
    first = int(generator.integers(0, min(2, columns - 2), endpoint=True))  # at the latest, the first group begins here
    while column < columns:
        length = 1 if column < first else int(generator.integers(1, _LONGEST_SPAN, endpoint=True))
        length = min(max(length, 2) if column == first else length, columns - column)
        rows = (0, 2) if length == 1 else (0, 1)
        spans.append(GridCell(rows, (column, column + length), is_column_header=True))
        column += length
    return spans


def _body_spans(
    generator: np.random.Generator, header_rows: int, rows: int, columns: int, taken: set[int]
) -> list[GridCell]:
    """Groups of rows in one column, mostly the first; no group contains a row that is taken."""
    column = 0 if generator.random() < 0.75 else int(generator.integers(columns))
    spans: list[GridCell] = []
    row = header_rows
    while row < rows - 1:
        length = int(generator.integers(2, _LONGEST_SPAN, endpoint=True))
        length = min(length, rows - row)
        if not taken.intersection(range(row, row + length)) and (not spans or generator.random() < 0.6):
            spans.append(GridCell((row, row + length), (column, column + 1)))
            row += length
        else:
            row += 1
    return spans
