"""Seeded weights: the same ones every time, and outputs that depend on the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.seeding import random_images, seed_weights, write_seeded_checkpoint
from detr_export.verification.tolerances import TOLERANCES
from tests import models

OUTPUTS = ("logits", "pred_boxes")


@torch.no_grad()
def outputs(model: DetrForObjectDetection, seed: int) -> dict[str, torch.Tensor]:
    result = model(torch.from_numpy(random_images((2, model.config.num_channels, 120, 140), seed)))
    return {name: result[name] for name in OUTPUTS}


def test_weights_are_reproducible() -> None:
    config = models.config(backbone="resnet18", position_embedding_type="learned")
    first, second, other = models.seeded(config), models.seeded(config), models.seeded(config, seed=1)
    assert not first.training
    for (name, value), same, different in zip(
        first.state_dict().items(), second.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(value, same), name
        assert not torch.equal(value, different), name
        assert value.isfinite().all(), name


def test_what_was_there_before_plays_no_part() -> None:
    model = DetrForObjectDetection(models.config())
    for value in model.state_dict().values():
        value.fill_(3.0)
    seed_weights(model)
    for name, value in models.seeded(models.config()).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_global_generator_is_left_alone() -> None:
    model = DetrForObjectDetection(models.config())
    before = torch.get_rng_state()
    seed_weights(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changes", [{}, {"backbone": "resnet18"}, {"backbone": "resnet18", "num_channels": 1}, {"auxiliary_loss": True}], ids=str
)
def test_images_differ_by_far_more_than_the_tolerance(changes: dict) -> None:
    model = models.seeded(models.config(**changes))
    first, second = outputs(model, seed=10), outputs(model, seed=11)
    for name in OUTPUTS:
        tolerance = TOLERANCES["fp32"].constant[name]
        assert (first[name] - second[name]).abs().max() > 100 * tolerance
        assert (first[name][0] - first[name][1]).abs().max() > 100 * tolerance  # also within a batch
        assert (first[name][:, 0] - first[name][:, 1]).abs().max() > 10 * tolerance  # and from query to query


def test_hooks_are_removed() -> None:
    model = models.seeded(models.config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs(model, seed=5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 7, 300), (3, 3, 64, 64)])
def test_random_images(shape: tuple[int, int, int, int]) -> None:
    images = random_images(shape, seed=2)
    assert images.shape == shape
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert np.array_equal(images, random_images(shape, seed=2))
    assert not np.array_equal(images, random_images(shape, seed=3))


@pytest.mark.parametrize("panoptic", [False, True])
def test_a_seeded_checkpoint_is_the_architecture_of_the_published_one(panoptic: bool, tmp_path: Path) -> None:
    folder = write_seeded_checkpoint(tmp_path / "r50", panoptic)
    checkpoint = load_checkpoint(folder)
    assert folder == tmp_path / "r50"
    assert checkpoint.task == ("segmentation" if panoptic else "detection")
    assert len(checkpoint.config.id2label) == (250 if panoptic else 91)
    assert (checkpoint.config.d_model, checkpoint.config.num_queries) == (256, 100)
    assert checkpoint.processor.to_dict()["format"] == ("coco_panoptic" if panoptic else "coco_detection")
