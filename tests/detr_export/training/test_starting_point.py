"""What training starts from: fresh weights, checkpoints with the same classes and with others, detectors that get masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.data.splits import CocoSplit, read_split
from detr_export.modeling.batch_norm import DetrFrozenBatchNorm2d
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import CheckpointError, InputError
from detr_export.training.options import TrainingOptions
from detr_export.training.starting_point import starting_point

DETECTION, PANOPTIC = TrainingOptions(), TrainingOptions(task="panoptic")


def split(shapes: Path, task: str = "panoptic") -> CocoSplit:
    return read_split(shapes, "train", task)


@pytest.fixture(scope="module")
def same_classes(shapes: Path, config_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A detector of the data's own classes."""
    start = starting_point(split(shapes), PANOPTIC, config_folder, None)
    model = start.model.detector
    folder = tmp_path_factory.mktemp("same") / "checkpoint"
    model.save_pretrained(folder, start.processor)
    return load_checkpoint(folder)


def test_from_scratch(shapes: Path, config_folder: Path) -> None:
    start = starting_point(split(shapes), PANOPTIC, config_folder, None)
    model = start.model
    assert isinstance(model, DetrForSegmentation)
    assert model.config.id2label == split(shapes).id2label
    assert model.config.extra["label_ids_to_fuse"] == [6, 7, 8, 9]
    assert not model.config.auxiliary_loss  # what is trained is what runs
    assert start.processor.size == {"shortest_edge": 96, "longest_edge": 128}
    # The whole backbone learns, batch norm included, and the queries are unit normal.
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(module, DetrFrozenBatchNorm2d) for module in model.modules())
    assert 0.9 < model.base.query_position_embeddings.weight.std() < 1.1
    bound = (6 / (32 + 64)) ** 0.5
    assert 0.9 * bound < model.base.encoder.layers[0].fc1.weight.abs().max() <= bound  # Xavier's
    again = starting_point(split(shapes), PANOPTIC, config_folder / "config.json", None)
    for one, other in zip(model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    other = starting_point(split(shapes), replace(PANOPTIC, seed=1), config_folder, None)
    assert not torch.equal(other.model.base.query_position_embeddings.weight, model.base.query_position_embeddings.weight)


def test_batch_norm_stays_frozen_when_asked(shapes: Path, config_folder: Path) -> None:
    start = starting_point(split(shapes), replace(PANOPTIC, train_batch_norm=False), config_folder, None)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in start.model.modules())


def test_a_checkpoint_with_the_same_classes_is_taken_whole(same_classes: Checkpoint, shapes: Path) -> None:
    start = starting_point(split(shapes, "detection"), DETECTION, None, same_classes)
    assert isinstance(start.model, DetrForObjectDetection)
    assert start.notes == ()
    for name, value in start.model.state_dict().items():
        assert torch.equal(value, same_classes.state_dict[name]), name
    assert start.processor.size == same_classes.processor.size
    assert any(isinstance(module, DetrFrozenBatchNorm2d) for module in start.model.modules())
    assert not start.model.get_parameter(
        "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight"
    ).requires_grad


def test_batch_norm_of_a_checkpoint_can_be_trained(same_classes: Checkpoint, shapes: Path) -> None:
    start = starting_point(split(shapes), replace(PANOPTIC, train_batch_norm=True), None, same_classes)
    norms = [module for module in start.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(parameter.requires_grad for parameter in start.model.parameters())
    name = next(name for name, module in start.model.named_modules() if isinstance(module, nn.BatchNorm2d))
    own = same_classes.state_dict[f"{name.removeprefix('detr.')}.running_var"]
    assert torch.equal(start.model.get_buffer(f"{name}.running_var"), own)


def test_a_detector_gets_a_mask_head(same_classes: Checkpoint, shapes: Path) -> None:
    start = starting_point(split(shapes), PANOPTIC, None, same_classes)
    assert isinstance(start.model, DetrForSegmentation)
    assert len(start.notes) == 1
    assert "has no mask head" in start.notes[0]
    for name, value in start.model.detr.state_dict().items():
        assert torch.equal(value, same_classes.state_dict[name]), name


def test_other_classes_get_a_fresh_classifier(tiny_checkpoint: Path, shapes: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    start = starting_point(split(shapes, "detection"), DETECTION, None, checkpoint)
    assert start.model.config.num_labels == 6
    assert "the classifier starts afresh" in start.notes[0]
    state = start.model.state_dict()
    fresh = {"class_labels_classifier.weight", "class_labels_classifier.bias"}
    assert state["class_labels_classifier.weight"].shape[0] == 7
    for name in state.keys() - fresh:
        assert torch.equal(state[name], checkpoint.state_dict[name]), name


def test_a_panoptic_checkpoint_gives_its_detector(segmenter: Path, shapes: Path) -> None:
    checkpoint = load_checkpoint(segmenter)
    start = starting_point(split(shapes, "detection"), DETECTION, None, checkpoint)
    assert isinstance(start.model, DetrForObjectDetection)
    name = "bbox_predictor.layers.0.weight"
    assert torch.equal(start.model.get_parameter(name), checkpoint.state_dict[f"detr.{name}"])


def test_refusals(tiny_checkpoint: Path, shapes: Path, config_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing to train"):
        starting_point(split(shapes), PANOPTIC, None, None)
    with pytest.raises(CheckpointError, match="does not exist"):
        starting_point(split(shapes), PANOPTIC, tmp_path / "config.json", None)
    with pytest.raises(CheckpointError, match="parameters do not fit the configuration"):  # other queries
        starting_point(split(shapes), PANOPTIC, config_folder, load_checkpoint(tiny_checkpoint))
    (tmp_path / "config.json").write_text((config_folder / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 99}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: resample is 99"):
        starting_point(split(shapes), PANOPTIC, tmp_path, None)
