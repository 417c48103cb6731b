"""End-to-end files beside other models: pairs of detections, and real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.errors import ArtifactError, InputError
from detr_export.verification import end_to_end
from detr_export.verification.detecting import COUNTS, NOTE, paired
from detr_export.verification.sessions import compare_models

CLOSE = 2e-2  # on scores: a level of few pixels changes a tiny model with random weights by that
QUICK = {"verify": False, "simplify": False, "end_to_end": True}


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint end to end, in RGB."""
    output = tmp_path_factory.mktemp("detecting") / "rgb.onnx"
    return export_onnx(load_checkpoint(tiny_checkpoint), output, ExportOptions(**QUICK)).path


@pytest.fixture(scope="module")
def bgr(tiny_checkpoint: Path, whole: Path) -> Path:
    """The same in BGR, with fewer detections."""
    options = ExportOptions(**QUICK, color="bgr")
    return export_onnx(load_checkpoint(tiny_checkpoint), whole.parent / "bgr.onnx", options).path


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "_SIZES", ((90, 120), (61, 37)))


def detections(count: int = 6) -> dict[str, np.ndarray]:
    """Of one image; the last one is below what counts."""
    generator = np.random.default_rng(0)
    scores = np.linspace(0.9, COUNTS + 0.1, count, dtype=np.float32)[None]
    scores[0, -1] = COUNTS / 2
    boxes = generator.uniform(0, 300, (1, count, 4)).astype(np.float32)
    return {"scores": scores, "labels": np.arange(count)[None], "boxes": boxes}


def test_queries_that_change_places_are_put_back() -> None:
    given, reference = detections(), detections()
    given["scores"][0, 1] = given["scores"][0, 2] = reference["scores"][0, 1] = reference["scores"][0, 2]
    for name in ("labels", "boxes"):
        given[name][0, [1, 2]] = given[name][0, [2, 1]]
    one, two = paired(given, reference)
    assert np.array_equal(one["labels"], two["labels"])
    assert np.array_equal(one["boxes"], two["boxes"])
    assert len(one["labels"]) == 5  # without the one below the score that counts
    assert np.array_equal(one["scores"], given["scores"])


@pytest.mark.parametrize(("name", "value"), [("labels", 77), ("boxes", 1e4), ("boxes", np.nan)])
def test_a_wrong_detection_is_seen(name: str, value: float) -> None:
    given = detections()
    given[name][0, 0] = value
    one, two = paired(given, detections())
    assert not np.array_equal(one[name], two[name])


def test_a_file_equals_itself(whole: Path) -> None:
    found = compare_models(whole, whole)
    assert [case.case for case in found.cases][-1] == "two images of 90x120"
    assert len(found.cases) == 4
    assert {item.max_abs_diff for item in found.worst.values()} == {0.0}
    assert found.notes == (NOTE,)


@pytest.mark.parametrize("swapped", [False, True])
def test_beside_a_plain_model(whole: Path, tiny_onnx: Path, tiny_checkpoint: Path, swapped: bool) -> None:
    pair = (tiny_checkpoint, whole) if swapped else (whole, tiny_onnx)
    found = compare_models(*pair)
    assert set(found.worst) == {"scores", "labels", "boxes"}
    assert found.worst["scores"].max_abs_diff < CLOSE
    assert found.only_in_model == found.only_in_other == ()


def test_each_file_gets_its_order_of_channels(whole: Path, bgr: Path, photo: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    assert {item.max_abs_diff for item in compare_models(whole, bgr, images=[photo]).worst.values()} == {0.0}
    assert compare_models(bgr, tiny_onnx, images=[photo]).worst["scores"].max_abs_diff < CLOSE
    np.savez(tmp_path / "image.npz", image=np.zeros((1, 40, 50, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="MODEL takes rgb images and OTHER bgr; give images"):
        compare_models(whole, bgr, inputs=tmp_path / "image.npz")
    assert compare_models(bgr, tiny_onnx, inputs=tmp_path / "image.npz").worst["scores"].max_abs_diff < CLOSE


def test_without_metadata_it_is_refused(whole: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(str(whole))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(ArtifactError, match="an end-to-end file has no metadata, so its order of channels is unknown"):
        compare_models(tmp_path / "bare.onnx", tiny_onnx)


def test_another_number_of_detections_is_refused(whole: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ExportOptions(**QUICK, top_k=3)
    fewer = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "fewer.onnx", options).path
    with pytest.raises(ArtifactError, match="scores has shape"):
        compare_models(whole, fewer)
    assert json.dumps(compare_models(fewer, tiny_checkpoint).to_dict())
