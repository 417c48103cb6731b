"""From detections to a grid of cells: each rule on boxes made by hand, drawn tables, and random boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from detr_export.pubtables import STRUCTURE_LABELS
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.tables import Cell, Table, tables_from_detections
from detr_export.training.table_data import TablePicture, draw_picture

SIZE = (200, 300)  # height, width
Object = tuple[str, Sequence[float], float]  # name of the class, box, score


def detections(objects: Sequence[Object], size: tuple[int, int] = SIZE) -> Detections:
    names = tuple(name for name, _, _ in objects)
    boxes = np.array([box for _, box, _ in objects], dtype=np.float32).reshape(-1, 4)
    scores = np.array([score for _, _, score in objects], dtype=np.float32)
    return Detections(scores, np.zeros(len(names), dtype=np.int64), boxes, names, size)


def grid(rows: int, columns: int, score: float = 0.9) -> list[Object]:
    """A table at (20, 10) with rows of 20 pixels and columns of 50."""
    right, bottom = 20 + 50 * columns, 10 + 20 * rows
    return [
        ("table", (20, 10, right, bottom), score),
        *(("table row", (20, 10 + 20 * row, right, 30 + 20 * row), score) for row in range(rows)),
        *(("table column", (20 + 50 * column, 10, 70 + 50 * column, bottom), score) for column in range(columns)),
    ]


def only_table(objects: Sequence[Object]) -> Table:
    (table,) = tables_from_detections(detections(objects))
    assert_complete(table)
    return table


def assert_complete(table: Table) -> None:
    """Cells cover each position once, in order, and their boxes are those of their rows and columns."""
    covered = np.zeros((len(table.rows), len(table.columns)), dtype=int)
    for cell in table.cells:
        (top, bottom), (left, right) = cell.rows, cell.columns
        covered[top:bottom, left:right] += 1
        corners = (table.columns[left, 0], table.rows[top, 1], table.columns[right - 1, 2], table.rows[bottom - 1, 3])
        assert cell.box.tolist() == list(corners)
        assert 0 < cell.score <= 1
    assert (covered == 1).all()
    assert (table.rows[1:, 1] == table.rows[:-1, 3]).all()
    assert (table.columns[1:, 0] == table.columns[:-1, 2]).all()
    places = [(cell.rows[0], cell.columns[0]) for cell in table.cells]
    assert places == sorted(places)
    assert table.box.dtype == table.rows.dtype == table.columns.dtype == np.float32


def merged(table: Table) -> dict[tuple[tuple[int, int], tuple[int, int]], Cell]:
    """The cells of more than one position, by their place."""
    return {(cell.rows, cell.columns): cell for cell in table.cells if np.ptp(cell.rows) * np.ptp(cell.columns) > 1}


# ---- the rules ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_where_row_and_column_meet() -> None:
    objects = grid(2, 3)
    objects[2] = ("table row", (25, 31, 160, 48), 0.7)  # shorter than the table, as models find them
    table = only_table(objects[::-1])  # in any order
    assert (table.rows.shape, table.columns.shape, len(table.cells)) == ((2, 4), (3, 4), 6)
    assert table.rows.tolist() == [[20, 10, 170, 30.5], [20, 30.5, 170, 48]]  # no gap
    assert table.columns[:, [0, 2]].tolist() == [[20, 70], [70, 120], [120, 170]]
    cell = table.cells[4]
    assert (cell.rows, cell.columns) == ((1, 2), (1, 2))
    assert cell.box.tolist() == [70, 30.5, 120, 48]
    assert cell.score == pytest.approx(0.7)  # its row's, the lower one
    assert table.cells[0].score == pytest.approx(0.9)
    assert not any(cell.is_column_header or cell.is_projected_row_header for cell in table.cells)


def test_the_best_of_overlapping_rows_and_columns_stays() -> None:
    objects = grid(4, 2)
    del objects[4]  # the fourth row
    objects += [
        ("table row", (20, 32, 120, 52), 0.95),  # 18 of 20 pixels are in the second row
        ("table row", (20, 55, 120, 60), 0.5),  # inside the third
        ("table row", (20, 63, 120, 83), 0.5),  # 7 of 20 pixels are in the third: a row of its own
        ("table column", (24, 10, 74, 90), 0.95),
    ]
    table = only_table(objects)
    assert table.rows[:, 1].tolist() == [10, 31, 51, 66.5]  # in the middle between 30 and 32, ...
    assert table.columns[:, 0].tolist() == [24, 72]


def test_rows_of_a_header_follow_each_other_from_the_top() -> None:
    def headers(*boxes: tuple[float, float]) -> list[bool]:
        objects = [*grid(4, 1), *(("table column header", (20, top, 70, bottom), 0.8) for top, bottom in boxes)]
        return [cell.is_column_header for cell in only_table(objects).cells]

    assert headers() == [False] * 4
    assert headers((10, 41)) == [True, True, False, False]  # 11 of 20 pixels of the second row
    assert headers((10, 40)) == [True, False, False, False]  # half of it is not more than half
    assert headers((30, 50)) == [False] * 4  # not at the top
    assert headers((10, 30), (50, 70)) == [True, False, False, False]  # not without a gap
    assert headers((10, 30), (30, 50)) == [True, True, False, False]
    assert headers((0, 99)) == [True] * 4


def test_a_projected_row_header_merges_its_row() -> None:
    objects = [*grid(4, 3), ("table projected row header", (22, 45, 100, 68), 0.6)]
    table = only_table(objects)
    ((place, cell),) = merged(table).items()
    assert place == ((2, 3), (0, 3))  # the row that it covers most; its width plays no part
    assert cell.is_projected_row_header
    assert not cell.is_column_header
    assert cell.score == pytest.approx(0.6)
    assert cell.box.tolist() == [20, 50, 170, 70]
    assert len(table.cells) == 10
    assert not merged(only_table([*objects, ("table column header", (20, 10, 170, 70), 0.5)]))  # the header wins
    assert not merged(only_table([*grid(4, 3), ("table projected row header", (22, 45, 100, 55), 0.6)]))  # too little
    (cell,) = only_table([*grid(1, 1), ("table projected row header", (20, 10, 70, 30), 0.6)]).cells
    assert cell.is_projected_row_header


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 10, 120, 30), ((0, 1), (0, 2))),
        ((20, 10, 96, 30), ((0, 1), (0, 2))),  # 26 of 50 pixels of the second column
        ((20, 10, 95, 30), None),  # half of it is not more than half, and one position alone is not merged
        ((70, 30, 120, 61), ((1, 3), (1, 2))),
        ((71, 31, 169, 69), ((1, 3), (1, 3))),
        ((20, 10, 120, 19), None),  # less than half of the row
        ((200, 10, 290, 90), None),  # beside the table
    ],
)
def test_a_spanning_cell_merges_what_it_covers(
    box: tuple[float, ...], expected: tuple[tuple[int, int], tuple[int, int]] | None
) -> None:
    table = only_table([*grid(4, 3), ("table spanning cell", box, 0.7)])
    assert list(merged(table)) == ([] if expected is None else [expected])
    if expected is not None:
        assert merged(table)[expected].score == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [((10, 90), (2, 4)), ((30, 90), (2, 4)), ((10, 70), (0, 2)), ((30, 70), None), ((10, 50), (0, 2))],
)
def test_a_spanning_cell_stays_on_one_side_of_the_header(rows: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """The header has two of four rows."""
    objects = [("table column header", (20, 10, 120, 50), 0.9), ("table spanning cell", (20, rows[0], 70, rows[1]), 0.9)]
    table = only_table([*grid(4, 2), *objects])
    assert [place for place, _ in merged(table)] == ([] if expected is None else [expected])


def test_the_best_score_gets_a_position() -> None:
    objects = [
        *grid(4, 3),
        ("table spanning cell", (20, 10, 120, 30), 0.6),  # row 0, columns 0 and 1
        ("table spanning cell", (70, 10, 120, 50), 0.7),  # rows 0 and 1 of column 1: better
        ("table spanning cell", (120, 50, 170, 90), 0.6),  # rows 2 and 3 of column 2
        ("table projected row header", (20, 70, 170, 90), 0.5),  # row 3: worse
    ]
    assert list(merged(only_table(objects))) == [((0, 2), (1, 2)), ((2, 4), (2, 3))]
    objects[-1] = (*objects[-1][:2], 0.65)
    assert list(merged(only_table(objects))) == [((0, 2), (1, 2)), ((3, 4), (0, 3))]


def test_several_tables_share_the_objects_by_their_centers() -> None:
    lower = [(name, (box[0] + 100, box[1] + 90, box[2] + 100, box[3] + 90), score) for name, box, score in grid(2, 2)]
    header = ("table column header", (120, 100, 220, 120), 0.9)
    lost = ("table row", (230, 10, 290, 30), 0.9)  # its centre is in no table
    twin = ("table", (22, 12, 170, 72), 0.5)  # the upper one again
    tables = tables_from_detections(detections([*lower, header, lost, twin, *grid(3, 3)]))
    assert [table.box.tolist() for table in tables] == [[20, 10, 170, 70], [120, 100, 220, 140]]  # from top to bottom
    assert [(len(table.rows), len(table.columns)) for table in tables] == [(3, 3), (2, 2)]
    for table in tables:
        assert_complete(table)
    assert [sum(cell.is_column_header for cell in table.cells) for table in tables] == [0, 2]


def test_without_a_table_all_rows_and_columns_are_one() -> None:
    table = only_table(grid(3, 2)[1:])
    assert table.box.tolist() == [20, 10, 120, 70]
    assert len(table.cells) == 6


def test_what_is_not_there() -> None:
    assert tables_from_detections(detections([])) == []
    assert tables_from_detections(detections([("table spanning cell", (0, 0, 9, 9), 0.9), ("car", (0, 0, 9, 9), 0.9)])) == []
    assert tables_from_detections(detections([("table row", (10, 10, 10, 30), 0.9)])) == []  # it has no area
    table = only_table([("Table", (20, 10, 70, 90), 0.9), ("TABLE Row", (20, 10, 70, 30), 0.9)])
    assert (table.rows.shape, table.columns.shape, table.cells) == ((1, 4), (0, 4), ())


# ---- drawn tables -------------------------------------------------------------------------------------------------------


def found_in(picture: TablePicture, generator: np.random.Generator, jitter: float) -> list[Object]:
    """What a good model finds: each box a bit off, some of them twice, in any order."""
    objects: list[Object] = []
    for label, box in picture.objects:
        for score in (0.9, 0.6)[: 1 + int(generator.random() < 0.3)]:
            moved = np.array(box) + generator.uniform(-jitter, jitter, 4)
            objects.append((STRUCTURE_LABELS[label], moved.tolist(), score))
    return [objects[index] for index in generator.permutation(len(objects))]


@pytest.mark.parametrize("index", range(50))
def test_drawn_tables_are_found_again(index: int) -> None:
    picture = draw_picture("test", index)
    layout = picture.table.layout
    objects = found_in(picture, np.random.default_rng(index), jitter=2)
    (table,) = tables_from_detections(detections(objects, picture.pixels.shape[:2]))
    assert_complete(table)
    assert (len(table.rows), len(table.columns)) == (layout.rows, layout.columns)
    expected = [(cell.rows, cell.columns, cell.is_column_header, cell.is_projected_row_header) for cell in layout.cells]
    given = [(cell.rows, cell.columns, cell.is_column_header, cell.is_projected_row_header) for cell in table.cells]
    assert given == expected
    for cell in table.cells:
        assert np.abs(cell.box - picture.table.box(cell.rows, cell.columns)).max() <= 2.01


def test_a_spanning_cell_that_is_not_found_leaves_single_cells() -> None:
    pictures = [draw_picture("test", index) for index in range(50)]
    picture = next(picture for picture in pictures if sum(label == 5 for label, _ in picture.objects) > 1)
    objects = [(STRUCTURE_LABELS[label], box, 0.9) for label, box in picture.objects]
    lost = next(index for index, item in enumerate(objects) if item[0] == "table spanning cell")
    complete, without = (only_table(items) for items in (objects, objects[:lost] + objects[lost + 1 :]))
    (missing,) = merged(complete).keys() - merged(without).keys()
    positions = np.ptp(missing[0]) * np.ptp(missing[1])
    assert len(without.cells) == len(complete.cells) + positions - 1


# ---- anything -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100))
def test_any_boxes_make_complete_grids(seed: int) -> None:
    generator = np.random.default_rng(seed)
    objects: list[Object] = []
    for name, most in zip(STRUCTURE_LABELS.values(), (3, 12, 12, 3, 4, 12), strict=True):
        for _ in range(generator.integers(0, most, endpoint=True)):
            x, y = np.sort(generator.uniform(-5, 305, 2)), np.sort(generator.uniform(-5, 205, 2))
            objects.append((name, (x[0], y[0], x[1], y[1]), float(generator.uniform(0.01, 1))))
    for table in tables_from_detections(detections(objects)):
        assert_complete(table)
        header_rows = [cell.rows for cell in table.cells if cell.is_column_header]
        end = max((rows[1] for rows in header_rows), default=0)
        for cell in table.cells:
            assert cell.is_column_header == (cell.rows[1] <= end)
            assert not (cell.is_column_header and cell.is_projected_row_header)
        for boxes, axis in ((table.rows, 1), (table.columns, 0)):
            assert (np.diff(boxes[:, axis]) > 0).all()
            assert (np.diff(boxes[:, axis + 2]) > 0).all()
        table.draw(np.zeros((*SIZE, 3), dtype=np.uint8))


# ---- the result ---------------------------------------------------------------------------------------------------------


def test_to_dict() -> None:
    table = only_table([*grid(1, 2), ("table column header", (20, 10, 120, 30), 0.5)])
    cell = {"rows": [0, 1], "is_column_header": True, "is_projected_row_header": False, "score": pytest.approx(0.9)}
    assert json.loads(json.dumps(table.to_dict())) == {
        "image_size": [200, 300],
        "box": [20, 10, 120, 30],
        "rows": [[20, 10, 120, 30]],
        "columns": [[20, 10, 70, 30], [70, 10, 120, 30]],
        "cells": [
            {**cell, "columns": [0, 1], "box": [20, 10, 70, 30]},
            {**cell, "columns": [1, 2], "box": [70, 10, 120, 30]},
        ],
    }


def test_draw() -> None:
    """Outlines of cells, two shades, and nothing else."""
    objects = [*grid(3, 2), ("table column header", (20, 10, 120, 30), 0.9)]
    objects += [("table projected row header", (20, 30, 120, 50), 0.9), ("table spanning cell", (20, 10, 120, 30), 0.9)]
    white = np.full((*SIZE, 3), 255, dtype=np.uint8)
    image = Image.fromarray(white)
    table = only_table(objects)
    drawn = np.asarray(table.draw(image))
    assert (np.asarray(image) == 255).all()  # a copy was drawn on
    outside = np.ones(SIZE, dtype=bool)
    outside[10:71, 20:121] = False
    assert (drawn[outside] == 255).all()
    header, projected, body = drawn[20, 40], drawn[40, 40], drawn[60, 40]
    assert (body == 255).all()
    assert len({tuple(color.tolist()) for color in (header, projected, body)}) == 3
    line = drawn[30, 40]
    assert (drawn[[10, 20, 30, 50, 60, 70], 20] == line).all()
    assert (drawn[60, 70] == line).all()
    assert (drawn[20, 70] == header).all()  # no line inside a merged cell
    with pytest.raises(ImageError, match="the image is 10x10"):
        table.draw(Image.new("RGB", (10, 10)))
    bare = only_table([("table", (20, 10, 120, 70), 0.9)])
    assert (np.asarray(bare.draw(image))[10, 20:121] == line).all()
