"""Boxes end at the edges of the image in results for people, and are the model's own for those who compare numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detr_export import cli
from detr_export.benchmarks.accuracy.evaluation import evaluate
from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import InputError
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.metadata import EndToEnd, Metadata
from detr_export.runtimes.session import Session, TensorSpec

HEIGHT, WIDTH = 30, 40
# (x_min, y_min, x_max, y_max) in pixels: inside, over each edge, over all, and wholly outside
RAW = np.array([[4, 3, 20, 15], [-4, -3, 12, 36], [36, 27, 44, 33], [-9, -9, 99, 99], [44, 3, 60, 6]], np.float32)
CLIPPED = np.array([[4, 3, 20, 15], [0, 0, 12, 30], [36, 27, 40, 30], [0, 0, 40, 30], [40, 3, 40, 6]], np.float32)
LABELS = {0: "text", 1: "table row", 2: "table column"}
FOUND = [2, 1, 2, 1, 1]
ATOL = 1e-4


class Outside(Session):
    """Finds the same boxes in any image of 30x40."""

    inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),)
    outputs = (
        TensorSpec("logits", "float32", ("batch", 5, 4)),
        TensorSpec("pred_boxes", "float32", ("batch", 5, 4)),
        TensorSpec("pred_masks", "float32", ("batch", 5, 3, 4)),
        TensorSpec("cross_attention", "float32", ("batch", 2, 5, 3, 4)),
    )
    metadata = Metadata("segmentation", LABELS, {"do_resize": False}, pixel_mask=False)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = len(inputs["pixel_values"])
        corners = RAW / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
        boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        logits = np.zeros((5, 4), np.float32)
        logits[np.arange(5), FOUND] = 9
        return {
            "logits": np.stack([logits] * batch),
            "pred_boxes": np.stack([boxes] * batch),
            "pred_masks": np.ones((batch, 5, 3, 4), np.float32),
            "cross_attention": np.ones((batch, 2, 5, 3, 4), np.float32),
        }

    def close(self) -> None:
        pass


class OutsideEndToEnd(Session):
    """An end-to-end file that finds the same."""

    inputs = (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),)
    outputs = (
        TensorSpec("scores", "float32", ("batch", 5)),
        TensorSpec("labels", "int64", ("batch", 5)),
        TensorSpec("boxes", "float32", ("batch", 5, 4)),
    )
    metadata = Metadata(
        "detection", LABELS, {"do_resize": False}, pixel_mask=False, input="image", end_to_end=EndToEnd("rgb", "matmul", 5)
    )

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = len(inputs["image"])
        return {
            "scores": np.full((batch, 5), 0.9, np.float32),
            "labels": np.array([FOUND] * batch),
            "boxes": np.stack([RAW] * batch),
        }

    def close(self) -> None:
        pass


@pytest.fixture
def image() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("session", [Outside(), OutsideEndToEnd()], ids=["plain", "end to end"])
def test_detections(session: Session, image: np.ndarray) -> None:
    predictor = Predictor(session)
    for found in (predictor.detect(image), *predictor.detect([image, image])):
        np.testing.assert_allclose(found.boxes, CLIPPED, atol=ATOL)
        assert found.boxes.dtype == np.float32
    for found in (predictor.detect(image, clip=False), *predictor.detect([image, image], clip=False)):
        np.testing.assert_allclose(found.boxes, RAW, atol=ATOL)
        assert len(found) == 5


def test_the_other_results_with_boxes(image: np.ndarray) -> None:
    predictor = Predictor(Outside())
    for clip, expected in ((True, CLIPPED), (False, RAW)):
        found, _ = predictor.detect_and_segment(image, clip=clip)
        np.testing.assert_allclose(found.boxes, expected, atol=ATOL)
        found, attention = predictor.explain(image, clip=clip)
        np.testing.assert_allclose(found.boxes, expected, atol=ATOL)
        assert len(attention) == 5
    assert predictor.detect_and_segment(image)[0].boxes.min() == 0
    assert predictor.explain(image)[0].boxes.min() == 0


def test_tables_are_put_together_from_clipped_boxes(image: np.ndarray) -> None:
    predictor = Predictor(OutsideEndToEnd())
    for table in predictor.tables(image):
        assert len(table.cells) > 1
        for boxes in (table.box[None], table.rows, table.columns, *(cell.box[None] for cell in table.cells)):
            assert boxes.min(initial=0) >= 0
            assert (boxes[:, 2:] <= (WIDTH, HEIGHT)).all()
    (raw,) = predictor.tables(image, clip=False)
    assert raw.box.min() < 0


@pytest.mark.parametrize("task", ["detection", "attention", "tables"])
def test_files(task: str, image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    predictor = Predictor(Outside())

    def lowest(clip: bool) -> float:
        (outcome,) = predict_files(predictor, [tmp_path / "a.png"], task=task, clip=clip)
        document = outcome.to_dict()
        return min(min(item["box"]) for item in document["tables" if task == "tables" else "detections"])

    assert lowest(True) == 0
    assert lowest(False) < 0


@pytest.mark.parametrize("task", ["panoptic", "instances", "semantic"])
def test_segments_have_nothing_to_clip(task: str, image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=rf"the task {task} are those of its masks, .* leave clip \(--no-clip\) out"):
        list(predict_files(Predictor(Outside()), [tmp_path / "a.png"], task=task, clip=False))


def test_the_command_line(image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    monkeypatch.setattr(Predictor, "load", lambda *args, **options: Predictor(Outside()))
    for options, expected in (([], CLIPPED), (["--no-clip"], RAW)):
        ran = CliRunner().invoke(cli.app, ["predict", "a.onnx", str(tmp_path / "a.png"), "--json", *options])
        assert ran.exit_code == 0, ran.output
        boxes = [item["box"] for item in json.loads(ran.stdout)[0]["detections"]]
        np.testing.assert_allclose(boxes, expected, atol=ATOL)


@pytest.mark.parametrize("masks", [True, False])
def test_scores_are_those_of_the_raw_boxes(masks: bool, image: np.ndarray, tmp_path: Path) -> None:
    """COCO's numbers: an annotation that is exactly a raw box is found with IoU 1, which a clipped one would not be."""
    Image.fromarray(image).save(tmp_path / "a.png")
    annotations = []
    for number, (raw, category) in enumerate(zip(RAW, FOUND, strict=True)):
        x_min, y_min, x_max, y_max = map(float, raw)
        box = [x_min, y_min, x_max - x_min, y_max - y_min]
        annotations.append({"id": number + 1, "image_id": 1, "category_id": category, "bbox": box, "iscrowd": 0})
        annotations[-1]["area"] = box[2] * box[3]
        if masks:
            annotations[-1]["segmentation"] = [[0, 0, 0, 30, 40, 30, 40, 0]]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in LABELS.items()],
    }
    scores = evaluate(Predictor(Outside()), tmp_path, document)
    assert scores.accuracy.metrics()["box"]["AP"] == pytest.approx(1.0)
