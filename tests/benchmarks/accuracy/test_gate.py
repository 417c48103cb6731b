"""The gate of `detr-export onnx --accuracy`: what passes, what does not, and that nothing is written then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from detr_export.benchmarks.accuracy.gate import require_accuracy, summary
from detr_export.benchmarks.accuracy.scores import find_annotated
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.runtimes import AnnotationError, VerificationError
from tests.benchmarks.conftest import Annotated
from tests.test_cli import fails, names, run


@pytest.fixture(scope="module")
def folder(annotated: Annotated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The annotated images as a COCO folder."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "val2017").symlink_to(annotated.images)
    (root / "annotations" / "instances_val2017.json").symlink_to(annotated.instances)
    (root / "annotations" / "panoptic_val2017.json").symlink_to(annotated.panoptic[0])
    (root / "annotations" / "panoptic_val2017").symlink_to(annotated.panoptic[1])
    return root


@pytest.fixture(scope="module")
def worse(segmenter_one_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported segmenter, in one graph, with its boxes moved."""
    model = onnx.load(segmenter_one_graph)
    bias = next(item for item in model.graph.initializer if item.name.endswith("bbox_predictor.layers.2.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.2), bias.name))
    file = tmp_path_factory.mktemp("worse") / "worse.onnx"
    onnx.save(model, file)
    return file


def test_finds_the_validation_split(folder: Path, tmp_path: Path) -> None:
    data = find_annotated(folder)
    annotations = folder / "annotations"
    assert (data.images, data.instances) == (folder / "val2017", annotations / "instances_val2017.json")
    assert data.panoptic == (annotations / "panoptic_val2017.json", annotations / "panoptic_val2017")
    with pytest.raises(AnnotationError, match="is no data set that is known: expected annotations/instances_val"):
        find_annotated(tmp_path)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(AnnotationError, match=r"should hold one annotation file named instances_val\*\.json; found none"):
        find_annotated(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").touch()
    with pytest.raises(AnnotationError, match="val does not exist"):
        find_annotated(tmp_path)
    (tmp_path / "val").mkdir()
    assert find_annotated(tmp_path).panoptic is None
    (tmp_path / "annotations" / "instances_val2.json").touch()
    with pytest.raises(AnnotationError, match=r"found instances_val\.json, instances_val2\.json"):
        find_annotated(tmp_path)


def test_an_export_passes(segmenter: Path, segmenter_onnx: Path, folder: Path) -> None:
    found = require_accuracy(segmenter_onnx, load_checkpoint(segmenter), find_annotated(folder), "segmentation", limit=4)
    assert found.images == 4
    text = summary(found)
    assert text.startswith("on 4 images box AP 0.")
    assert "mask AP" in text
    assert "panoptic PQ" in text
    assert text.endswith("against the checkpoint")


def test_a_worse_file_does_not(segmenter: Path, worse: Path, folder: Path) -> None:
    data = find_annotated(folder)
    with pytest.raises(
        VerificationError, match=r"less accurate than its checkpoint: box AP is 0\.\d+ lower.* on 4 images; at"
    ):
        require_accuracy(worse, load_checkpoint(segmenter), data, "segmentation", limit=4)
    found = require_accuracy(worse, load_checkpoint(segmenter), data, "detection", max_drop=1.0, limit=2)
    assert found.accuracy.panoptic is None


def test_without_objects_there_is_nothing_to_compare(
    segmenter: Path, segmenter_onnx: Path, annotated: Annotated, tmp_path: Path
) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").symlink_to(annotated.images)
    document = {**annotated.document(), "annotations": []}
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(document))
    with pytest.raises(VerificationError, match="the 2 images have no annotations that AP could be computed from"):
        require_accuracy(segmenter_onnx, load_checkpoint(segmenter), find_annotated(tmp_path), "segmentation", limit=2)


# ---- detr-export onnx --accuracy ----------------------------------------------------------------------------------------

# Tracing takes longest, and has been done.
TRACED = "import onnx; from detr_export.graphs import export; export.trace = lambda *args: onnx.load({!r})"
OPTIONS = ("--precision", "fp16", "--no-verify", "--accuracy-images", "3")


def test_command(tiny_checkpoint: Path, tiny_onnx: Path, folder: Path, tmp_path: Path) -> None:
    before = TRACED.format(str(tiny_onnx))
    file = tmp_path / "a.onnx"
    done = run("onnx", tiny_checkpoint, "-o", file, "--accuracy", folder, "--max-ap-drop", "1", *OPTIONS, before=before)
    assert done.returncode == 0, done.stderr
    first, second, third, fourth = done.stdout.splitlines()
    assert first.endswith("MB, detection, fp16, opset 18")
    assert second == "not verified: --no-verify"
    assert "of the constants are fp16" in third
    assert fourth.startswith("on 3 images box AP")
    assert "  scoring" in done.stderr.splitlines()
    assert names(tmp_path) == ["a.onnx"]


def test_command_writes_nothing_less_accurate(segmenter: Path, worse: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"old")
    arguments = ("-o", tmp_path / "a.onnx", "--overwrite", "--no-simplify", "--no-verify", "--accuracy", folder)
    line = fails("onnx", segmenter, "--one-graph", *arguments, "--accuracy-images", "3", before=TRACED.format(str(worse)))
    assert "less accurate than its checkpoint" in line
    assert (tmp_path / "a.onnx").read_bytes() == b"old"
    assert names(tmp_path) == ["a.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-ap-drop", "0.1"), "go with --accuracy DATA"),
        (("--accuracy-images", "3"), "go with --accuracy DATA"),
        (("--accuracy", "data", "--max-ap-drop", "2"), "Invalid value for '--max-ap-drop'"),
        (("--precision", "int4"), "Invalid value for '--precision'"),
        (("--input", "float16"), "Invalid value for '--input'"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    done = run("onnx", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
