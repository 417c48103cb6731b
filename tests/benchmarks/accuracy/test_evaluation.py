"""A model on annotated images, from files to numbers, and beside the checkpoint it came from."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from detr_export.benchmarks.accuracy import evaluation
from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.benchmarks.accuracy.evaluation import Evaluation, evaluate
from detr_export.benchmarks.accuracy.panoptic_evaluator import PanopticEvaluator
from detr_export.runtimes import (
    AnnotationError,
    ArtifactError,
    CheckpointError,
    ImageError,
    InputError,
    OutputError,
    Predictor,
)
from tests.benchmarks.conftest import CATEGORIES, PANOPTIC_THRESHOLD, Annotated, Watcher
from tests.test_cli import fails, run

PARITY = 1e-3  # of any metric, between a checkpoint and its export


@pytest.fixture(scope="module")
def compared(segmenter: Path, segmenter_onnx: Path, annotated: Annotated) -> Evaluation:
    return evaluate(
        segmenter_onnx,
        annotated.images,
        annotated.instances,
        annotated.panoptic,
        threshold=PANOPTIC_THRESHOLD,
        against=segmenter,
        batch=2,
    )


def numbers(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    return {f"{kind} {name}": value for kind, part in metrics.items() for name, value in part.items() if value is not None}


def test_an_export_is_as_accurate_as_its_checkpoint(compared: Evaluation) -> None:
    difference = compared.difference()
    assert difference is not None
    differences, own = numbers(difference), numbers(compared.accuracy.metrics())
    assert set(differences) == set(own)
    assert {"box AP", "mask AP", "panoptic PQ", "panoptic PQ_stuff"} <= set(own)
    assert max(map(abs, differences.values())) <= PARITY
    for name in ("box AP", "box AR100", "mask AP", "panoptic PQ", "panoptic SQ"):
        assert 0.05 < own[name] < 0.98, name  # or parity would prove little


def test_the_numbers_are_those_of_the_evaluators(compared: Evaluation, segmenter: Path, annotated: Annotated) -> None:
    """Image by image, without batches."""
    coco, panoptic = CocoEvaluator(annotated.instances), PanopticEvaluator(*annotated.panoptic)
    with Predictor.load(segmenter) as predictor:
        for record in annotated.document()["images"]:
            found, segmentation = predictor.detect_and_segment(
                annotated.images / record["file_name"], 0.0, PANOPTIC_THRESHOLD, clip=False
            )
            coco.update(record["id"], found)
            panoptic.update(record["id"], segmentation)
    assert compared.reference is not None
    expected, expected_panoptic = coco.compute(), panoptic.compute()
    given = compared.reference.coco
    for part, wanted in ((given.bbox, expected.bbox), (given.segm, expected.segm)):
        assert part is not None
        assert wanted is not None
        assert vars(part.metrics) == pytest.approx(vars(wanted.metrics), abs=PARITY)
        assert part.per_class == pytest.approx(wanted.per_class, abs=PARITY)
    assert compared.reference.panoptic is not None
    assert vars(compared.reference.panoptic.all) == pytest.approx(vars(expected_panoptic.all), abs=PARITY)


def test_another_model_differs(segmenter_onnx: Path, annotated: Annotated, tmp_path: Path) -> None:
    """The difference is the model's number less the reference's."""
    import shutil

    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(segmenter_onnx.parent / "checkpoint", tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = "mask_head.out_lay.bias"
    save_file({**tensors, name: tensors[name] - 0.5}, other / "model.safetensors", metadata={"format": "pt"})
    found = evaluate(segmenter_onnx, annotated.images, annotated.instances, against=other)
    difference = found.difference()
    assert difference is not None
    assert found.reference is not None
    own, theirs = found.accuracy.metrics()["mask"]["AP"], found.reference.metrics()["mask"]["AP"]
    assert own is not None
    assert theirs is not None
    assert difference["mask"]["AP"] == pytest.approx(own - theirs)
    assert own - theirs > 0.02
    assert difference["box"]["AP"] == pytest.approx(0, abs=PARITY)


def test_open_models_stay_open(segmenter_onnx: Path, segmenter: Path, annotated: Annotated, compared: Evaluation) -> None:
    places = (annotated.images, annotated.instances)
    with Predictor.load(segmenter_onnx) as own, Predictor.load(segmenter) as other:
        found = evaluate(own, *places, limit=2, against=other)
        again = evaluate(own, *places, limit=2)
    assert found.accuracy.metrics() == again.accuracy.metrics()
    assert found.reference is not None
    # They have the name of their checkpoint, and no file of their own.
    assert found.accuracy.model == found.reference.model == str(segmenter)
    assert (found.accuracy.sha256, found.reference.sha256) == (None, None)
    assert found.accuracy.source == compared.accuracy.source


def test_progress_is_told_how_many_images_are_done(segmenter_onnx: Path, annotated: Annotated) -> None:
    watcher = Watcher()
    evaluate(segmenter_onnx, annotated.images, annotated.instances, limit=3, batch=2, progress=watcher)
    assert [(done, total) for done, total, _ in watcher.steps] == [(0, 3), (2, 3), (3, 3)]


def test_plots_are_of_the_model_that_is_scored(
    segmenter_onnx: Path, segmenter: Path, annotated: Annotated, tmp_path: Path
) -> None:
    folder = tmp_path / "plots"
    places = (annotated.images, annotated.instances)
    found = evaluate(segmenter_onnx, *places, limit=3, against=segmenter, plots=folder)
    assert found.plots == found.to_dict()["plots"] == str(folder)
    assert f"plots: {folder}" in found.summary().splitlines()
    for prefix, scores in (("", found.accuracy.coco.bbox), ("mask_", found.accuracy.coco.segm)):
        assert scores is not None
        with (folder / f"{prefix}precision_recall.csv").open(newline="") as file:
            precision: dict[str, list[float]] = {}
            for row in csv.DictReader(file):
                precision.setdefault(row["class"], []).append(float(row["precision at IoU .50:.95"]))
        areas = {name: sum(values) / len(values) for name, values in precision.items()}
        expected = {name: value for name, value in scores.per_class.items() if value is not None}
        assert areas == pytest.approx({"(all classes)": scores.metrics.AP, **expected})

    # Refused before anything is predicted.
    watcher = Watcher()
    with pytest.raises(OutputError, match="is not empty; add --overwrite"):
        evaluate(segmenter_onnx, *places, plots=folder, progress=watcher)
    assert not watcher.steps
    with Predictor.load(segmenter_onnx) as predictor:
        assert evaluate(predictor, *places, limit=1, plots=folder, overwrite=True).plots == str(folder)
    assert evaluate(segmenter_onnx, *places, limit=1).plots is None


def test_to_dict(compared: Evaluation, segmenter_onnx: Path, segmenter: Path) -> None:
    document = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert document["model"] == str(segmenter_onnx)
    assert document["sha256"] == hashlib.sha256(segmenter_onnx.read_bytes()).hexdigest()
    assert document["reference"]["model"] == str(segmenter)
    assert document["reference"]["sha256"] is None
    assert document["source"] == document["reference"]["source"]
    assert len(document["source"]["sha256"]) == 64
    assert (document["task"], document["images"], document["panoptic_threshold"]) == ("segmentation", 6, PANOPTIC_THRESHOLD)
    assert {"numpy", "pycocotools", "torch", "onnxruntime", "python"} <= set(document["versions"])
    assert set(document["metrics"]) == set(document["difference"]) == {"box", "mask", "panoptic"}
    assert list(document["metrics"]["box"])[:3] == ["AP", "AP50", "AP75"]
    assert list(document["per_class"]["box"]) == [item["name"] for item in CATEGORIES]
    assert [row["name"] for row in document["per_class"]["panoptic"]] == [item["name"] for item in CATEGORIES]


def test_summary(compared: Evaluation, segmenter_onnx: Path, segmenter: Path) -> None:
    head, metrics, classes = compared.summary().split("\n\n")
    assert head.splitlines() == [f"{segmenter_onnx}: 6 images, panoptic threshold 0.3", f"reference: {segmenter}"]
    rows = [line.split() for line in metrics.splitlines()]
    assert rows[0] == ["metric", "model", "reference", "difference"]
    own = compared.accuracy.metrics()["box"]["AP"]
    assert rows[1][:3] == ["box", "AP", f"{own:.4f}"]
    assert ["panoptic", "PQ", "stuff"] in [row[:3] for row in rows]
    assert "-" in metrics.split()  # no object is large
    assert len({len(line) for line in metrics.splitlines()}) == 1  # aligned
    assert classes.splitlines()[0].split() == ["class", "box", "AP", "mask", "AP", "PQ", "SQ", "RQ"]
    assert {line.split()[0] for line in classes.splitlines()[1:]} <= {item["name"] for item in CATEGORIES}


def test_images_are_read_once_and_in_order(
    segmenter_onnx: Path, segmenter: Path, annotated: Annotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    spinning: list[bool | None] = []
    load_image, load = evaluation.load_image, Predictor.load
    monkeypatch.setattr(evaluation, "load_image", lambda path: (read.append(path.name), load_image(path))[1])

    def recorded(*arguments: Any, **options: Any) -> Predictor:
        spinning.append(options["spinning"])
        return load(*arguments, **options)

    monkeypatch.setattr(Predictor, "load", recorded)
    found = evaluate(segmenter_onnx, annotated.images, annotated.instances, limit=4, batch=3, against=segmenter)
    assert read == ["95.png", "96.png", "97.png", "98.png"]
    assert (found.images, found.accuracy.coco.images) == (4, 4)
    assert spinning == [False, None]  # ONNX Runtime's waiting threads would slow PyTorch down
    evaluate(segmenter_onnx, annotated.images, annotated.instances, limit=1)
    assert spinning[2:] == [None]


def test_a_detector_runs_padded_batches(tiny_onnx: Path, tiny_checkpoint: Path, annotated: Annotated) -> None:
    """Annotated with every other box that it finds image by image, where nothing is padded."""
    document = {**annotated.document(), "annotations": []}
    records = sorted(document["images"], key=lambda record: record["id"])
    with Predictor.load(tiny_onnx) as predictor:
        for record in records:
            found = predictor.detect(annotated.images / record["file_name"], 0.0, clip=False)
            document["annotations"] += [{**entry, "area": 1000} for entry in found.to_coco(record["id"])[::2]]
        expected = CocoEvaluator(document, ("bbox",))
        for chosen in (records[:4], records[4:]):
            batch = predictor.detect([annotated.images / record["file_name"] for record in chosen], 0.0, clip=False)
            for record, found in zip(chosen, batch, strict=True):
                expected.update(record["id"], found)
    scores = expected.compute().bbox
    assert scores is not None
    given = evaluate(tiny_onnx, annotated.images, document, batch=4, against=tiny_checkpoint)
    assert given.accuracy.coco.segm is None
    assert given.accuracy.panoptic is None
    assert given.accuracy.metrics() == {"box": pytest.approx(vars(scores.metrics), abs=1e-9)}
    assert 0.1 < (scores.metrics.AP50 or 0) < 0.98  # image by image it is near 1
    difference = given.difference()
    assert difference is not None
    assert set(difference) == {"box"}
    assert max(map(abs, numbers(difference).values())) <= PARITY


def test_a_detector_beside_a_segmenter(tiny_onnx: Path, segmenter: Path, annotated: Annotated) -> None:
    found = evaluate(tiny_onnx, annotated.images, annotated.instances, against=segmenter)
    assert set(found.difference() or {}) == {"box"}
    with pytest.raises(ArtifactError, match=f"^{tiny_onnx} draws no masks, which {segmenter} does"):
        evaluate(segmenter, annotated.images, annotated.instances, against=tiny_onnx)


def test_annotations_without_masks(segmenter_onnx: Path, annotated: Annotated) -> None:
    document = annotated.document()
    for item in document["annotations"]:
        del item["segmentation"]
    found = evaluate(segmenter_onnx, annotated.images, document, limit=2)
    assert set(found.accuracy.metrics()) == {"box"}
    assert found.notes == ("the annotations have no segmentation, so masks are not scored",)
    assert "note: the annotations have no segmentation" in found.summary()
    with_panoptic = evaluate(segmenter_onnx, annotated.images, document, annotated.panoptic, limit=2, threshold=0.3)
    assert set(with_panoptic.accuracy.metrics()) == {"box", "panoptic"}


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_refuses_a_detector_for_pq(tiny_onnx: Path, annotated: Annotated) -> None:
    with pytest.raises(ArtifactError, match="draws no masks, which PQ needs; give a segmentation model"):
        evaluate(tiny_onnx, annotated.images, annotated.instances, annotated.panoptic)


def test_refuses_missing_images_before_it_runs(tiny_onnx: Path, annotated: Annotated, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"{tmp_path}/95.png does not exist \(6 of 6 images are missing\)"):
        evaluate(tiny_onnx, tmp_path, annotated.instances)
    (tmp_path / "95.png").write_bytes(b"")
    with pytest.raises(ImageError, match=rf"{tmp_path}/96.png does not exist \(5 of 6"):
        evaluate(tiny_onnx, tmp_path, annotated.instances)
    with pytest.raises(ImageError, match=r"95.png"):
        evaluate(tiny_onnx, tmp_path, annotated.instances, limit=1)


def test_refuses_missing_pngs_before_it_runs(segmenter_onnx: Path, annotated: Annotated, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"95.png does not exist: expected its panoptic PNG"):
        evaluate(segmenter_onnx, annotated.images, annotated.instances, (annotated.panoptic[0], tmp_path))
    with pytest.raises(AnnotationError, match="this is a panoptic file"):
        evaluate(segmenter_onnx, annotated.images, annotated.panoptic[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"categories": [{"id": 1, "name": "dog"}]},
            AnnotationError,
            "1 is 'dog' in the annotations and 'person' in the model",
        ),
        (
            {"categories": [{"id": 50, "name": "person"}]},
            AnnotationError,
            "the model has none of the annotations' 1 categories",
        ),
        ({"images": []}, AnnotationError, "the annotations list no images"),
        ({"images": [{"id": 1}]}, AnnotationError, "image 1: no file_name"),
        ({"images": [{"id": 1, "file_name": 3}]}, AnnotationError, "file_name is 3: expected the name of a picture"),
        ({"images": [{"id": 1, "file_name": "95.png", "height": 1, "width": 1}]}, InputError, "is 1x1 in the annotations"),
    ],
)
def test_refuses_annotations(
    change: dict[str, Any], error: type[Exception], message: str, tiny_onnx: Path, annotated: Annotated
) -> None:
    with pytest.raises(error, match=message):
        evaluate(tiny_onnx, annotated.images, {**annotated.document(), **change})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"limit": 0}, InputError, "limit is 0; expected at least 1"),
        ({"batch": 0}, InputError, "batch is 0; expected at least 1"),
        ({"threshold": 1.5}, InputError, "threshold is 1.5; expected a number from 0 to 1"),
        ({"against": "nothing"}, CheckpointError, "nothing"),
    ],
    ids=str,
)
def test_refuses_options(
    options: dict[str, Any], error: type[Exception], message: str, tiny_onnx: Path, annotated: Annotated
) -> None:
    with pytest.raises(error, match=message):
        evaluate(tiny_onnx, annotated.images, annotated.instances, **options)


# ---- the command --------------------------------------------------------------------------------------------------------


def test_command(segmenter_onnx: Path, segmenter: Path, annotated: Annotated, compared: Evaluation) -> None:
    places = ("--images", annotated.images, "--annotations", annotated.instances)
    options = ("--panoptic", *annotated.panoptic, "--threshold", "0.3", "--against", segmenter, "--batch", "2")
    done = run("evaluate", segmenter_onnx, *places, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a bar is for terminals
    document = json.loads(done.stdout)
    for kind, values in compared.accuracy.metrics().items():
        assert document["metrics"][kind] == pytest.approx(values, abs=PARITY)
    assert max(map(abs, numbers(document["difference"]).values())) <= PARITY
    assert (document["model"], document["reference"]["model"]) == (str(segmenter_onnx), str(segmenter))


def test_command_prints_tables(tiny_onnx: Path, annotated: Annotated) -> None:
    places = ("--images", annotated.images, "--annotations", annotated.instances)
    done = run("evaluate", tiny_onnx, *places, "--limit", "2")
    assert done.returncode == 0, done.stderr
    head, metrics, classes = done.stdout.split("\n\n")
    assert head == f"{tiny_onnx}: 2 images"
    assert metrics.splitlines()[0].split() == ["metric", "model"]
    assert len(metrics.splitlines()) == 13
    assert classes.splitlines()[0].split() == ["class", "box", "AP"]


def test_command_errors(tiny_onnx: Path, annotated: Annotated, tmp_path: Path) -> None:
    places = ("--images", annotated.images, "--annotations", annotated.instances)
    assert "draws no masks, which PQ needs" in fails("evaluate", tiny_onnx, *places, "--panoptic", *annotated.panoptic)
    assert "a.json does not exist" in fails("evaluate", tiny_onnx, *places[:3], tmp_path / "a.json")
    absent = "import sys; sys.modules['pycocotools'] = None"
    message = fails("evaluate", tiny_onnx, *places, before=absent)
    assert message == "error: pycocotools is not installed; run: pip install 'detr-export[bench]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("a", "--images", "b"), "Missing option '--annotations'"),
        (("a", "--images", "b", "--annotations", "c", "--panoptic", "d"), "Option '--panoptic' requires 2 arguments"),
        (("a", "--images", "b", "--annotations", "c", "--limit", "0"), "Invalid value for '--limit'"),
        (("a", "--images", "b", "--annotations", "c", "--batch", "0"), "Invalid value for '--batch'"),
        (("a", "--images", "b", "--annotations", "c", "--threshold", "2"), "Invalid value for '--threshold'"),
    ],
)
def test_command_refuses_usage(arguments: tuple[str, ...], message: str) -> None:
    done = run("evaluate", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_command_help() -> None:
    done = run("evaluate", "--help")
    assert done.returncode == 0
    assert "--panoptic" in done.stdout
    assert "FILE DIR" in done.stdout
