"""The Table Transformer that comes along: it reads drawn tables as its record says, as a checkpoint and as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detr_export.checkpoints.reading import PACKAGED, load_checkpoint
from detr_export.graphs.export import export_onnx
from detr_export.graphs.options import ExportOptions
from detr_export.pubtables import STRUCTURE_LABELS
from detr_export.runtimes import Predictor, Table
from detr_export.runtimes.folder import predict_files
from detr_export.training.table_data import TablePicture, draw_picture

IMAGES = 100
THRESHOLD = 0.7
SAMPLE = 24  # a picture with a header and merged cells, which it reads right at any threshold from 0.5 to 0.9


def is_right(picture: TablePicture, tables: list[Table]) -> bool:
    """Whether one table was found, and each of its cells covers the rows and columns that it was drawn over."""
    drawn = {(cell.rows, cell.columns) for cell in picture.table.layout.cells}
    return len(tables) == 1 and {(cell.rows, cell.columns) for cell in tables[0].cells} == drawn


def test_it_is_a_table_transformer() -> None:
    config = load_checkpoint("demo-tables").config
    assert config.pre_norm
    assert config.id2label == STRUCTURE_LABELS


@pytest.fixture(scope="module")
def pictures() -> list[TablePicture]:
    return [draw_picture("val", index) for index in range(IMAGES)]


def test_it_reads_tables_as_well_as_recorded(pictures: list[TablePicture], tmp_path: Path) -> None:
    """The pictures differ a little from those of the record where Pillow has another version: its font."""
    recorded = json.loads((PACKAGED["demo-tables"] / "scores.json").read_text())[f"first {IMAGES} images"]
    assert recorded["threshold"] == THRESHOLD
    file = export_onnx(load_checkpoint("demo-tables"), tmp_path / "tables.onnx", ExportOptions(verify=False)).path
    shares = []
    for source in ("demo-tables", file):
        with Predictor.load(source) as predictor:
            right = [is_right(picture, predictor.tables(picture.pixels, THRESHOLD)) for picture in pictures]
        shares.append(sum(right) / IMAGES)
    assert abs(shares[0] - recorded["right tables"]) <= 0.05
    assert abs(shares[0] - shares[1]) <= 0.02


def test_predict_draws_the_grid(pictures: list[TablePicture], tmp_path: Path) -> None:
    image = tmp_path / "table.png"
    Image.fromarray(pictures[SAMPLE].pixels).save(image)
    with Predictor.load("demo-tables") as predictor:
        (outcome,) = predict_files(predictor, [image], THRESHOLD, tmp_path / "out", False, "tables")
        (table,) = predictor.tables(image, THRESHOLD)
    layout = pictures[SAMPLE].table.layout
    assert outcome.summary() == f"{image}: a table of {layout.rows} rows and {layout.columns} columns"
    assert is_right(pictures[SAMPLE], [table])
    (written,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["tables"][0]["rows"] == table.rows.tolist()
    assert len(written["tables"][0]["cells"]) == len(layout.cells)
    assert outcome.picture is not None
    with Image.open(outcome.picture) as picture:
        assert picture.size == (pictures[SAMPLE].pixels.shape[1], pictures[SAMPLE].pixels.shape[0])
