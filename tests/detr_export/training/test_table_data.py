"""The drawn tables: reproducible, varied, and their boxes agree with their structure and with what is painted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from detr_export.data.splits import read_split
from detr_export.pubtables import STRUCTURE_LABELS
from detr_export.runtimes.errors import BackendError, OutputError
from detr_export.training.table_data import TablePicture, draw_picture, write_table_data
from detr_export.training.table_text import font_of

PICTURES = 80


@pytest.fixture(scope="module")
def pictures() -> list[TablePicture]:
    return [draw_picture("train", index) for index in range(PICTURES)]


def test_a_picture_depends_on_split_and_index_alone(pictures: list[TablePicture]) -> None:
    again = draw_picture("train", 3)
    assert np.array_equal(again.pixels, pictures[3].pixels)
    assert again.table == pictures[3].table
    for other in (draw_picture("val", 3), pictures[4]):
        assert other.table != again.table
        assert other.pixels.shape != again.pixels.shape


def test_cells_cover_the_grid_once(pictures: list[TablePicture]) -> None:
    for picture in pictures:
        layout = picture.table.layout
        covered = np.zeros((layout.rows, layout.columns), dtype=int)
        for cell in layout.cells:
            covered[slice(*cell.rows), slice(*cell.columns)] += 1
            assert cell.is_column_header == (cell.rows[0] < layout.header_rows)
            if cell.is_projected_row_header:
                assert cell.columns == (0, layout.columns)
                assert cell.rows[1] - cell.rows[0] == 1
        assert (covered == 1).all()


def test_rows_and_columns_tile_the_table(pictures: list[TablePicture]) -> None:
    for picture in pictures:
        boxes = {label: [box for name, box in picture.objects if name == label] for label in STRUCTURE_LABELS}
        ((left, top, right, bottom),) = boxes[0]
        height, width = picture.pixels.shape[:2]
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        assert (right - left) * (bottom - top) > 0.55 * width * height
        assert 256 <= max(height, width) <= 320
        columns, rows = np.array(boxes[1]), np.array(boxes[2])
        assert (columns[:, [1, 3]] == (top, bottom)).all()
        assert (rows[:, [0, 2]] == (left, right)).all()
        assert [*columns[:, 0].tolist(), right] == [left, *columns[:, 2].tolist()]
        assert [*rows[:, 1].tolist(), bottom] == [top, *rows[:, 3].tolist()]
        assert (rows[:, 3] - rows[:, 1]).min() >= 12
        assert (columns[:, 2] - columns[:, 0]).min() >= 20


def test_objects_are_those_of_the_structure(pictures: list[TablePicture]) -> None:
    """Found again in the grid by the corners of the boxes."""
    for picture in pictures:
        layout, x, y = picture.table.layout, picture.table.x, picture.table.y
        counts = Counter(label for label, _ in picture.objects)
        assert (counts[0], counts[1], counts[2], counts[3]) == (1, layout.columns, layout.rows, int(layout.header_rows > 0))
        blocks = Counter(
            (label, (y.index(top), y.index(bottom)), (x.index(left), x.index(right)))
            for label, (left, top, right, bottom) in picture.objects
        )
        if layout.header_rows:
            assert blocks[3, (0, layout.header_rows), (0, layout.columns)] == 1
        large = [cell for cell in layout.cells if np.ptp(cell.rows) * np.ptp(cell.columns) > 1]
        expected = Counter((4 if cell.is_projected_row_header else 5, cell.rows, cell.columns) for cell in large)
        assert Counter({block: count for block, count in blocks.items() if block[0] in (4, 5)}) == expected


def test_tables_are_varied(pictures: list[TablePicture]) -> None:
    layouts = [picture.table.layout for picture in pictures]
    assert {layout.rows for layout in layouts} == set(range(2, 10))
    assert {layout.columns for layout in layouts} == set(range(2, 7))
    assert {layout.header_rows for layout in layouts} == {0, 1, 2}
    with_label = Counter(label for picture in pictures for label in {label for label, _ in picture.objects})
    assert 0.12 < with_label[4] / PICTURES < 0.35
    assert 0.2 < with_label[5] / PICTURES < 0.45
    spans = {(np.ptp(cell.rows), np.ptp(cell.columns)) for layout in layouts for cell in layout.cells if cell.is_spanning}
    assert spans >= {(1, 2), (1, 3), (2, 1), (3, 1)}


def test_most_cells_have_text(pictures: list[TablePicture]) -> None:
    busy = []
    for picture in pictures:
        grey = picture.pixels.mean(axis=-1)
        for cell in picture.table.layout.cells:
            left, top, right, bottom = picture.table.box(cell.rows, cell.columns)
            busy.append(grey[top + 2 : bottom - 2, left + 2 : right - 2].std())
    assert np.mean(np.array(busy) > 15) > 0.85


def test_files_are_what_the_trainer_reads(tmp_path: Path) -> None:
    write_table_data(tmp_path, 3, "train")
    split = read_split(tmp_path, "train", "detection")
    assert dict(split.id2label) == STRUCTURE_LABELS
    document = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    assert {path.name for path in tmp_path.rglob("*") if path.is_dir()} == {"annotations", "train"}  # nothing panoptic
    for index, record in enumerate(split.records):
        picture = draw_picture("train", index)
        with Image.open(record["image"]) as image:
            assert (image.height, image.width) == picture.pixels.shape[:2]
            assert np.abs(np.asarray(image).astype(float) - picture.pixels).mean() < 6  # JPEG
        found = [(item["category_id"], item["bbox"]) for item in record["annotations"]]
        assert found == [(label, [x, y, right - x, bottom - y]) for label, (x, y, right, bottom) in picture.objects]
    assert len({item["id"] for item in document["annotations"]}) == len(document["annotations"])
    for item in document["annotations"]:
        assert item["area"] == item["bbox"][2] * item["bbox"][3]
    with pytest.raises(OutputError, match="remove that split first"):
        write_table_data(tmp_path, 1, "train")


def test_an_old_pillow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_default() -> None:
        pass

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    font_of.cache_clear()
    with pytest.raises(BackendError, match=r"needs Pillow 10\.1 or later"):
        draw_picture("train", 0)
