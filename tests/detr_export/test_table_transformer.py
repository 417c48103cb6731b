"""Table Transformer, from the directory that transformers writes to detections, against transformers' own class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_export.benchmarks.accuracy.evaluation import evaluate
from detr_export.benchmarks.speed.peers import TransformersSession
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, ExportResult, export_onnx
from detr_export.loading import load_model
from detr_export.pubtables import STRUCTURE_LABELS
from detr_export.runtimes import Predictor
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.profiles import default_profiles
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.processing.images import load_image
from detr_export.seeding import random_images
from detr_export.training.options import TrainingOptions
from detr_export.training.table_data import write_table_data
from detr_export.training.trainer import train
from tests import models

LONGEST = 160
# What the hub's directories hold, with a smaller size: neither the old key names nor the lone edge suit transformers' class.
HUB_SETTINGS = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DetrFeatureExtractor",
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"longest_edge": LONGEST},
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The oracle, with weights under which outputs vary."""
    labels = {str(index): name for index, name in STRUCTURE_LABELS.items()}
    ours = models.seeded(models.config(model_type="table-transformer", num_queries=25, id2label=labels))
    return models.oracle(ours.config, ours.state_dict())


@pytest.fixture(scope="module")
def directory(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table-transformer")
    theirs.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HUB_SETTINGS))
    assert json.loads((folder / "config.json").read_text())["dilation"] is None
    return folder


@pytest.fixture(scope="module")
def exported(directory: Path) -> ExportResult:
    """Exported with no option, so it has passed the gate."""
    return export_onnx(load_checkpoint(directory), directory.parent / "table.onnx", ExportOptions())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_data(tmp_path_factory.mktemp("tables"), 6, "train")


def test_exports_and_passes_the_gate(exported: ExportResult) -> None:
    assert exported.parity is not None
    assert exported.parity.passed
    assert exported.parity.cases == 8
    assert not exported.parity.weak


@torch.no_grad()
def test_the_file_gives_the_oracles_outputs(exported: ExportResult, theirs: Any) -> None:
    mask = np.ones((2, 101, 139), dtype=np.int64)
    mask[1, 70:], mask[1, :, 90:] = 0, 0
    images = random_images((2, 3, 101, 139), 2) * mask[:, None].astype(np.float32)
    expected = theirs(torch.from_numpy(images), torch.from_numpy(mask))
    with OrtSession(exported.path) as session:
        given = session.run({"pixel_values": images, "pixel_mask": mask})
    assert np.abs(given["logits"] - expected.logits.numpy()).max() <= 1e-4
    assert np.abs(given["pred_boxes"] - expected.pred_boxes.numpy()).max() <= 1e-5
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 0.1


def test_fp16_passes_the_gate(directory: Path, tmp_path: Path) -> None:
    result = export_onnx(load_checkpoint(directory), tmp_path / "half.onnx", ExportOptions(precision="fp16"))
    assert result.parity is not None
    assert result.parity.passed
    assert result.fp16 is not None
    assert result.fp16.rounded.passed


@torch.no_grad()
def test_detections_are_those_of_the_oracle(exported: ExportResult, directory: Path, theirs: Any, photo: Path) -> None:
    import transformers

    # transformers cannot scale to the longest edge alone, so it is told the size that this comes to.
    image = load_image(photo)
    scale = LONGEST / max(image.size)
    size = {"height": round(scale * image.height), "width": round(scale * image.width)}
    assert max(size.values()) == LONGEST
    processor = transformers.DetrImageProcessor(size=size)
    outputs = theirs(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, 0.2, target_sizes=[(image.height, image.width)])
    assert len(expected["scores"]) >= 3
    for source in (exported.path, directory):
        with Predictor.load(source) as predictor:
            found = predictor.detect(photo, threshold=0.2, clip=False)
        assert found.labels.tolist() == expected["labels"].tolist()
        assert np.allclose(found.scores, expected["scores"].numpy(), atol=1e-4)
        assert np.allclose(found.boxes, expected["boxes"].numpy(), atol=0.05)
        assert set(found.names) <= set(STRUCTURE_LABELS.values())


@torch.no_grad()
def test_transformers_reads_what_is_written_back(directory: Path, theirs: Any, tmp_path: Path) -> None:
    import transformers

    checkpoint = load_checkpoint(directory)
    load_model(checkpoint).save_pretrained(tmp_path, checkpoint.processor)
    again = transformers.TableTransformerForObjectDetection.from_pretrained(tmp_path)
    images = torch.from_numpy(random_images((1, 3, 96, 128), 1))
    assert torch.equal(again(images).logits, theirs(images).logits)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"longest_edge": LONGEST}


def test_engines_get_the_sizes_that_the_processor_makes(directory: Path) -> None:
    profiles = default_profiles(load_checkpoint(directory).processor.to_dict(), 2)
    for height, width in ((LONGEST, 40), (40, LONGEST), (LONGEST, LONGEST), (LONGEST, 120)):
        for batch in (1, 2):
            shape = (batch, height, width)
            assert any(
                all(low <= side <= high for low, side, high in zip(profile.minimum, shape, profile.maximum, strict=True))
                for profile in profiles
            ), shape


def test_fine_tuning_keeps_the_architecture(directory: Path, drawn: Path, tmp_path: Path) -> None:
    import transformers

    options = TrainingOptions(epochs=1, batch_size=3, learning_rate=1e-4)
    train(drawn, tmp_path / "tuned", options, None, load_checkpoint(directory), workers=0)
    tuned = load_checkpoint(tmp_path / "tuned")
    assert tuned.config.pre_norm
    assert tuned.config.id2label == STRUCTURE_LABELS
    before = load_checkpoint(directory).state_dict["model.encoder.layernorm.weight"]
    moved = (tuned.state_dict["model.encoder.layernorm.weight"] - before).abs().max()
    assert 0 < moved < 0.01
    transformers.TableTransformerForObjectDetection.from_pretrained(tmp_path / "tuned")


def test_detr_bench_measures_transformers_own_class(directory: Path, theirs: Any, tmp_path: Path) -> None:
    images, mask = random_images((1, 3, 96, 128), 1), np.ones((1, 96, 128), dtype=np.int64)
    with TransformersSession(directory, 1) as session, torch.no_grad():
        given = session.run({"pixel_values": images, "pixel_mask": mask})
        expected = theirs(torch.from_numpy(images), torch.from_numpy(mask))
    assert np.array_equal(given["logits"], expected.logits.numpy())
    (tmp_path / "config.json").write_text('{"model_type": "yolos"}')
    with pytest.raises(CheckpointError, match="of the model type yolos; expected a DETR"):
        TransformersSession(tmp_path, 1)


def test_scores(exported: ExportResult, directory: Path, drawn: Path) -> None:
    annotations = drawn / "annotations" / "instances_train.json"
    found = evaluate(str(exported.path), drawn / "train", annotations, against=str(directory))
    assert found.images == 6
    difference = found.difference()
    assert difference is not None
    assert abs(difference["box"]["AP"] or 0) < 1e-6


def test_reads_tables(exported: ExportResult, drawn: Path) -> None:
    """The weights are random; what counts is that the classes are known and every position has its cell."""
    with Predictor.load(exported.path) as predictor, Image.open(drawn / "train" / "000001.jpg") as image:
        for table in predictor.tables(image.convert("RGB"), threshold=0.1):
            covered = sum((cell.rows[1] - cell.rows[0]) * (cell.columns[1] - cell.columns[0]) for cell in table.cells)
            assert covered in (0, len(table.rows) * len(table.columns))
