"""Classes and styles of many files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import InputError
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.drawing_style import DrawingStyle


def test_only_some_classes(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    with Predictor.load(tiny_onnx) as predictor:
        everything = predictor.detect(photo, 0.0)
        name = everything.names[0]
        assert 0 < everything.names.count(name) < len(everything)
        (outcome,) = predict_files(predictor, [photo], 0.0, tmp_path, classes=[name])
        expected = everything.of_classes([name])
        assert outcome.result == expected
        (entry,) = json.loads((tmp_path / "predictions.json").read_text())
        assert entry["detections"] == expected.to_dict()["detections"]
        assert outcome.picture is not None
        assert np.array_equal(np.asarray(load_image(outcome.picture)), np.asarray(expected.draw(photo)))
        with pytest.raises(InputError, match="the model has no class 'Persons'; similar classes are person"):
            list(predict_files(predictor, [photo], classes=["Persons"]))


def test_only_some_classes_of_segments(segmenter_onnx: Path, photo: Path) -> None:
    with Predictor.load(segmenter_onnx) as predictor:
        everything = predictor.segment_panoptic(photo, 0.0)
        name = everything.segments[0].name
        (outcome,) = predict_files(predictor, [photo], 0.0, task="panoptic", classes=[name])
        expected = everything.of_classes([name])
        assert np.array_equal(outcome.result.map, expected.map)  # type: ignore[union-attr]
        assert outcome.result.segments == expected.segments  # type: ignore[union-attr]


def test_only_some_classes_of_explained_detections(tiny_checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    with Predictor.load(tiny_checkpoint, attentions=True) as predictor:
        found, attention = predictor.explain(photo, 0.0)
        name = found.names[0]
        (outcome,) = predict_files(predictor, [photo], 0.0, tmp_path, task="attention", classes=[name])
        kept = [number for number, other in enumerate(found.names) if other == name]
        expected = found.select(np.array(kept)).draw_attention(photo, attention[kept])
        assert outcome.picture is not None
        assert np.array_equal(np.asarray(load_image(outcome.picture)), np.asarray(expected))


def test_a_style(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    style = DrawingStyle(line_width=9, labels=False)
    with Predictor.load(tiny_onnx) as predictor:
        (outcome,) = predict_files(predictor, [photo], 0.0, tmp_path, style=style)
        expected = predictor.detect(photo, 0.0).draw(photo, style)
    assert outcome.picture is not None
    assert np.array_equal(np.asarray(load_image(outcome.picture)), np.asarray(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "semantic", "classes": ["cat"]}, "a semantic map gives every pixel a class"),
        ({"task": "tables", "classes": ["cat"]}, "a grid is put together from all classes"),
        ({"task": "panoptic", "style": DrawingStyle(line_width=2)}, r"leave line_width \(--line-width\) out"),
        ({"task": "attention", "style": DrawingStyle(line_width=2)}, r"leave line_width \(--line-width\) out"),
        ({"task": "attention", "style": DrawingStyle(font_size=2)}, "leave font_size"),
        ({"task": "tables", "style": DrawingStyle(labels=False)}, "labels .--hide-labels. out"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(tiny_onnx: Path, photo: Path, options: dict[str, Any], message: str) -> None:
    with Predictor.load(tiny_onnx) as predictor, pytest.raises(InputError, match=message):
        list(predict_files(predictor, [photo], **options))
