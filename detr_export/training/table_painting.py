"""Paints tables: shaded rows, lines, and text in the cells. All coordinates are in pixels of the final picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from detr_export.training.table_layout import GridCell, PlacedTable
from detr_export.training.table_text import font_of, number, words

_SUPERSAMPLING = 2  # for smooth text
_FONT_SIZES = (8.0, 15.0)  # pixels
_LEAST_NOTE = 6.0  # pixels; smaller text above or below the table is left out
_LINE_HEIGHT = 1.15  # of text, in font sizes
_EMPTY = 0.06  # probability of a cell without text
_DARK = 400  # sum of red, green and blue below which a ground needs light text

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """How one table looks."""

    lines: str  # "grid": around all cells; "rows": below all rows; "rules": above and below the table; or "none"
    zebra: bool  # whether every second row is striped
    framed: bool
    bold_header: bool
    ruled_header: bool
    header_fill: Color | None
    projected_fill: Color | None
    bold_projected: bool
    page: Color
    stripe: Color
    ink: Color
    rule: Color
    alignments: tuple[str, ...]  # for each column "l", "m" or "r"
    numbers: tuple[int | None, ...]  # for each column, which kind of numbers it has; None for words
    font: float  # size, pixels
    padding: float  # beside text, pixels


def make_style(generator: np.random.Generator, numeric: Sequence[bool], row_height: float) -> Style:
    """Makes up a style.

    Args:
        generator: of random numbers.
        numeric: for each column, whether it has numbers.
        row_height: of a row with one line of text, pixels.
    """
    chance = generator.random
    lines = str(generator.choice(["grid", "rows", "rules", "none"], p=[0.3, 0.15, 0.3, 0.25]))
    zebra = bool(chance() < (0.6 if lines == "none" else 0.15))
    page = np.full(3, 255) if chance() < 0.6 else generator.integers(232, 256, 3)
    shade = page * generator.uniform(0.8, 0.92, 3 if chance() < 0.5 else 1)
    dark = generator.integers((20, 40, 60), (120, 120, 150))
    bold, ruled, filled = (bool(value) for value in generator.random(3) < 0.55)
    header_fill = dark if chance() < 0.3 else shade
    text = str(generator.choice(["l", "m"], p=[0.7, 0.3]))
    digits = str(generator.choice(["l", "m", "r"], p=[0.2, 0.4, 0.4]))
    kinds = generator.integers(0, 100, len(numeric)).tolist()
    font = float(np.clip(row_height * generator.uniform(0.42, 0.6), *_FONT_SIZES))
    return Style(
        lines=lines,
        zebra=zebra,
        framed=bool(chance() < 0.2),
        bold_header=bold or not (ruled or filled),
        ruled_header=ruled,
        header_fill=_rgb(header_fill) if filled else None,
        projected_fill=_rgb(shade) if not zebra and chance() < 0.4 else None,
        bold_projected=bool(chance() < 0.6),
        page=_rgb(page),
        stripe=_rgb(page * generator.uniform(0.87, 0.95, 3)),
        ink=_rgb(generator.integers(0, 70, 3)),
        rule=_rgb(np.full(3, generator.integers(0, 150))),
        alignments=tuple(digits if is_numeric else text for is_numeric in numeric),
        numbers=tuple(kind if is_numeric else None for kind, is_numeric in zip(kinds, numeric, strict=True)),
        font=font,
        padding=font * generator.uniform(0.25, 0.45),
    )


def _rgb(values: np.ndarray) -> Color:
    red, green, blue = values.round().astype(int).tolist()
    return red, green, blue


class Painter:
    """Paints one table on a fresh page.

    Args:
        generator: of random numbers.
        table: what is painted, and where.
        style: how it looks.
        size: (width, height) of the picture, pixels.
    """

    def __init__(self, generator: np.random.Generator, table: PlacedTable, style: Style, size: tuple[int, int]) -> None:
        self._generator, self._table, self._style, self._size = generator, table, style, size
        self._image = Image.new("RGB", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING), style.page)
        self._draw = ImageDraw.Draw(self._image)

    def paint(self, notes: Sequence[bool]) -> np.ndarray:
        """Paints the table, and text above and below it if `notes` says so. Returns (height, width, 3) uint8 RGB."""
        self._fill_rows()
        self._draw_lines()
        for cell in self._table.layout.cells:
            self._write_cell(cell)
        self._write_notes(notes)
        return np.asarray(self._image.reduce(_SUPERSAMPLING))

    def _fill_rows(self) -> None:
        layout, style = self._table.layout, self._style
        whole = (0, layout.columns)
        if style.zebra:
            for row in range(layout.header_rows, layout.rows, 2):
                self._fill(self._table.box((row, row + 1), whole), style.stripe)
        if style.header_fill is not None and layout.header_rows:
            self._fill(self._table.box((0, layout.header_rows), whole), style.header_fill)
        for cell in layout.cells:
            if cell.is_projected_row_header and style.projected_fill is not None:
                self._fill(self._table.box(cell.rows, whole), style.projected_fill)
            elif style.zebra and cell.is_spanning and not cell.is_column_header:
                self._fill(self._table.box(cell.rows, cell.columns), style.page)

    def _draw_lines(self) -> None:
        layout, style = self._table.layout, self._style
        left, top, right, bottom = self._table.box((0, layout.rows), (0, layout.columns))
        for cell in layout.cells:
            x_min, y_min, x_max, y_max = self._table.box(cell.rows, cell.columns)
            if style.lines == "grid":
                self._line((x_min, y_min), (x_max, y_min))
                self._line((x_min, y_min), (x_min, y_max))
            elif style.lines == "rows" and cell.rows[0] > 0:
                self._line((x_min, y_min), (x_max, y_min))
            elif cell.is_column_header and cell.is_spanning and cell.rows[1] < layout.header_rows and style.ruled_header:
                self._line((x_min + style.padding, y_max), (x_max - style.padding, y_max))
        if style.lines != "none":
            self._line((left, top), (right, top))
            self._line((left, bottom), (right, bottom))
        if style.lines == "grid" or style.framed:
            self._line((left, top), (left, bottom))
            self._line((right, top), (right, bottom))
        if layout.header_rows and style.ruled_header:
            self._line((left, self._table.y[layout.header_rows]), (right, self._table.y[layout.header_rows]), 1.5)

    def _write_cell(self, cell: GridCell) -> None:
        generator, style, column = self._generator, self._style, cell.columns[0]
        left, top, right, bottom = self._table.box(cell.rows, cell.columns)
        is_wide = cell.columns[1] - column > 1
        is_label = cell.is_column_header or cell.is_projected_row_header or cell.is_spanning or column == 0
        if not is_label and generator.random() < _EMPTY:
            return

        # The text: one number, or words on one or two lines.
        def fits(text: str) -> bool:
            return self._width(text, style.font) <= right - left - 2 * style.padding

        kind = None if cell.is_column_header or is_wide else style.numbers[column]
        if kind is not None:
            texts = [number(generator, kind, fits)]
        else:
            lines = int((bottom - top) / (style.font * _LINE_HEIGHT * 1.1))
            count = int(generator.integers(1, min(max(lines, 1), 2), endpoint=True))
            most = 6 if cell.is_projected_row_header else 2 if is_wide else 4
            texts = [words(generator, fits, int(generator.integers(1, most, endpoint=True))) for _ in range(count)]

        # Its look and its place.
        bold = style.bold_header if cell.is_column_header else cell.is_projected_row_header and style.bold_projected
        on_dark = cell.is_column_header and style.header_fill is not None and sum(style.header_fill) < _DARK
        align = "l" if cell.is_projected_row_header else "m" if is_wide else style.alignments[column]
        x = {"l": left + style.padding, "m": (left + right) / 2, "r": right - style.padding}[align]
        for index, text in enumerate(texts):
            y = (top + bottom) / 2 + (index - (len(texts) - 1) / 2) * style.font * _LINE_HEIGHT
            self._write((x, y), text, style.font, f"{align}m", style.page if on_dark else style.ink, bold)

    def _write_notes(self, notes: Sequence[bool]) -> None:
        """Text above and below the table, if there is room."""
        for is_above, wanted in zip((True, False), notes, strict=True):
            if wanted:
                self._write_note(is_above)

    def _write_note(self, is_above: bool) -> None:
        generator, style = self._generator, self._style
        left, right, height = self._table.x[0], self._table.x[-1], self._size[1]
        room = self._table.y[0] if is_above else height - self._table.y[-1]
        font = min(style.font * generator.uniform(0.8, 1.1), 0.6 * room)
        text = words(generator, lambda line: self._width(line, font) <= right - left, int(generator.integers(2, 13)))
        if font >= _LEAST_NOTE:
            bold = is_above and bool(generator.random() < 0.5)
            self._write((left, room / 2 if is_above else height - room / 2), text, font, "lm", style.ink, bold)

    # ---- in pixels of the final picture -----------------------------------------------------------------------------

    def _fill(self, box: tuple[int, int, int, int], color: Color) -> None:
        left, top, right, bottom = (value * _SUPERSAMPLING for value in box)
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=color)

    def _line(self, start: tuple[float, float], end: tuple[float, float], width: float = 1) -> None:
        points = [tuple(round(value * _SUPERSAMPLING) for value in point) for point in (start, end)]
        self._draw.line(points, fill=self._style.rule, width=round(width * _SUPERSAMPLING))

    def _write(
        self, place: tuple[float, float], text: str, size: float, anchor: str, color: Color, bold: bool = False
    ) -> None:
        """Writes one line. Pillow's font has one weight: bold text is written twice, half a pixel apart."""
        x, y = (round(value * _SUPERSAMPLING) for value in place)
        for shift in (0, 1) if bold else (0,):
            self._draw.text((x + shift, y), text, fill=color, font=font_of(round(size * _SUPERSAMPLING)), anchor=anchor)

    def _width(self, text: str, size: float) -> float:
        return font_of(round(size * _SUPERSAMPLING)).getlength(text) / _SUPERSAMPLING
