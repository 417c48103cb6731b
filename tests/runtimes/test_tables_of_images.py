"""Tables from images to files: with a session that finds exactly what is drawn, and with a real one on any photograph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_export.pubtables import STRUCTURE_LABELS
from detr_export.runtimes import Predictor, Table
from detr_export.runtimes.errors import ArtifactError, ImageError, InputError
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.tables import tables_from_detections
from detr_export.runtimes.session import Session, TensorSpec
from detr_export.training.table_data import TablePicture, draw_picture
from tests.models import edit_config

QUERIES = 40
SCORE = 0.8


class Found(Session):
    """Finds what is drawn in pictures, which it tells apart by their height and width."""

    inputs = (
        TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
        TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
    )
    outputs = (
        TensorSpec("logits", "float32", ("batch", QUERIES, len(STRUCTURE_LABELS) + 1)),
        TensorSpec("pred_boxes", "float32", ("batch", QUERIES, 4)),
    )

    def __init__(self, pictures: list[TablePicture], labels: Mapping[int, str]) -> None:
        self.pictures = {picture.pixels.shape[:2]: picture for picture in pictures}
        self.metadata = Metadata("detection", labels, {"do_resize": False}, pixel_mask=True)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = len(inputs["pixel_values"])
        logits = np.zeros((batch, QUERIES, len(STRUCTURE_LABELS) + 1), dtype=np.float32)
        logits[..., -1] = 9
        boxes = np.full((batch, QUERIES, 4), 0.5, dtype=np.float32)
        for index, mask in enumerate(inputs["pixel_mask"]):
            height, width = int(mask.any(axis=1).sum()), int(mask.any(axis=0).sum())
            for query, (label, (left, top, right, bottom)) in enumerate(self.pictures[height, width].objects):
                logits[index, query] = 0
                logits[index, query, label] = np.log(SCORE / (1 - SCORE) * len(STRUCTURE_LABELS))
                center = ((left + right) / 2 / width, (top + bottom) / 2 / height)
                boxes[index, query] = (*center, (right - left) / width, (bottom - top) / height)
        return {"logits": logits, "pred_boxes": boxes}

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def pictures() -> list[TablePicture]:
    found = [draw_picture("val", index) for index in range(6)]
    assert len({picture.pixels.shape for picture in found}) == len(found)
    return found


@pytest.fixture(scope="module")
def predictor(pictures: list[TablePicture]) -> Iterator[Predictor]:
    with Predictor(Found(pictures, STRUCTURE_LABELS)) as opened:
        yield opened


@pytest.fixture(scope="module")
def table_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose classes have other names: those that it finds in the photograph are rows and columns."""
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("tables") / "checkpoint"))
    names = ("Table Spanning Cell", "Table", "Table Column Header", "Table Row", "Table Column")
    edit_config(directory, id2label=dict(enumerate(names)), label2id={})
    return directory


def structure(table: Table) -> list[tuple]:
    return [(cell.rows, cell.columns, cell.is_column_header, cell.is_projected_row_header) for cell in table.cells]


def test_tables_are_what_is_drawn(predictor: Predictor, pictures: list[TablePicture]) -> None:
    """One padded batch of six sizes."""
    results = predictor.tables([picture.pixels for picture in pictures])
    for (table,), picture in zip(results, pictures, strict=True):
        cells = picture.table.layout.cells
        assert structure(table) == [
            (cell.rows, cell.columns, cell.is_column_header, cell.is_projected_row_header) for cell in cells
        ]
        boxes = np.array([picture.table.box(cell.rows, cell.columns) for cell in cells])
        assert np.abs(np.stack([cell.box for cell in table.cells]) - boxes).max() < 1e-3
        assert [cell.score for cell in table.cells] == pytest.approx([SCORE] * len(cells), abs=1e-5)
        assert table.image_size == picture.pixels.shape[:2]


def test_one_image_or_a_list(predictor: Predictor, pictures: list[TablePicture]) -> None:
    (table,) = predictor.tables(pictures[0].pixels)
    ((of_list,),) = predictor.tables([pictures[0].pixels])
    assert table.to_dict() == of_list.to_dict()
    assert predictor.tables([]) == []


def test_the_threshold_is_that_of_detect(table_checkpoint: Path, photo: Path) -> None:
    with Predictor.load(table_checkpoint) as opened:
        counts = []
        for threshold in (0.0, 0.5, 1.0):
            tables = opened.tables(photo, threshold)
            expected = tables_from_detections(opened.detect(photo, threshold))
            assert [table.to_dict() for table in tables] == [table.to_dict() for table in expected]
            counts.append(sum(len(table.rows) + len(table.columns) for table in tables))
    assert counts[0] > counts[1] > counts[2] == 0  # or the comparison would prove little


def test_refusals(predictor: Predictor, pictures: list[TablePicture], tiny_checkpoint: Path, photo: Path) -> None:
    with Predictor.load(tiny_checkpoint) as detector, pytest.raises(ArtifactError, match="has no class 'table row'"):
        detector.tables(photo)
    only_rows = {**STRUCTURE_LABELS, 1: "column"}
    with pytest.raises(ArtifactError, match=r"no class 'table column', .* expected a model of the structure of tables"):
        Predictor(Found(pictures, only_rows)).tables(pictures[0].pixels)
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        predictor.tables(pictures[0].pixels, 1.5)
    with pytest.raises(ImageError, match="does not exist"):
        predictor.tables("nothing.png")


def test_files(predictor: Predictor, pictures: list[TablePicture], tmp_path: Path) -> None:
    for index, picture in enumerate(pictures[:2]):
        Image.fromarray(picture.pixels).save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    outcomes = list(predict_files(predictor, paths, 0.5, tmp_path / "out", task="tables"))
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document == [outcome.to_dict() for outcome in outcomes]
    for path, entry, outcome, picture in zip(paths, document, outcomes, pictures, strict=False):
        (table,) = predictor.tables(path)
        assert set(entry) == {"image", "file", "picture", "tables"}
        assert entry["tables"] == [json.loads(json.dumps(table.to_dict()))]
        drawn = load_image(entry["picture"])
        assert np.array_equal(np.asarray(drawn), np.asarray(table.draw(path)))
        assert not np.array_equal(np.asarray(drawn), picture.pixels)
        layout = picture.table.layout
        assert outcome.summary() == f"{path}: a table of {layout.rows} rows and {layout.columns} columns"


def test_a_file_without_a_table(table_checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    with Predictor.load(table_checkpoint) as opened:
        (outcome,) = predict_files(opened, [photo], 1.0, tmp_path / "out", task="tables")
    assert outcome.summary() == f"{photo}: nothing found"
    assert outcome.to_dict()["tables"] == []
    assert outcome.picture is not None
    assert np.array_equal(np.asarray(load_image(outcome.picture)), np.asarray(load_image(photo)))
