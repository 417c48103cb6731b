"""The losses of the stages against the whole model's loss, and against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detr_export.data.splits import read_split
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes import DetrImageProcessor
from detr_export.seeding import seed_weights
from detr_export.training.dataset import Augmentation, Batch, CocoDataset, collate
from detr_export.training.objective import DetectorObjective, MaskObjective
from tests import models


@pytest.fixture(scope="module")
def batch(shapes: Path) -> Batch:
    split = read_split(shapes, "train", "panoptic")
    data = CocoDataset(split, DetrImageProcessor(size=96), True, Augmentation(), 0)
    made = collate([data[(0, index)] for index in (0, 1, 2, 5)])
    assert isinstance(made, Batch)
    assert len({len(target["boxes"]) for target in made.targets}) > 1
    return made


@pytest.fixture
def model() -> DetrForSegmentation:
    labels = {str(index): f"class {index}" for index in range(10)}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    made = DetrForSegmentation(models.config(**heads, id2label=labels, auxiliary_loss=True))
    seed_weights(made)
    return made


def test_masks_of_matched_queries_alone_give_the_same_loss_and_gradients(model: DetrForSegmentation, batch: Batch) -> None:
    whole = model(batch.pixel_values, batch.pixel_mask, labels=batch.targets)
    whole.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    loss, terms = MaskObjective(model, with_detector=True)(batch)
    loss.backward()
    assert torch.allclose(loss, whole.loss, rtol=1e-5)
    assert set(terms) == set(whole.loss_dict)
    assert {"loss_mask", "loss_dice", "loss_ce_0"} <= set(terms)
    for name, value in whole.loss_dict.items():
        assert torch.allclose(terms[name], value, rtol=1e-4, atol=1e-6), name
    # Matching changes nothing here but the order of sums.
    for name, gradient in gradients.items():
        found = model.get_parameter(name).grad
        assert found is not None
        assert torch.allclose(found, gradient, rtol=1e-2, atol=1e-4 * gradient.abs().max().item() + 1e-7), name


def test_the_detector_alone(model: DetrForSegmentation, batch: Batch) -> None:
    loss, terms = DetectorObjective(model)(batch)
    expected = model.detr(batch.pixel_values, batch.pixel_mask, labels=batch.targets)
    assert torch.equal(loss, expected.loss)
    assert set(terms) == set(expected.loss_dict)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.mask_head.parameters())


@pytest.mark.parametrize("model_type", ["detr", "table-transformer"])
def test_earlier_layers_have_losses_and_change_nothing(model_type: str, batch: Batch) -> None:
    """Layer i is the last layer of a model that has only the layers up to i. What runs later is what was trained."""
    labels = {str(index): f"class {index}" for index in range(10)}
    whole = models.seeded(models.config(model_type=model_type, decoder_layers=3, id2label=labels))
    loss, terms = DetectorObjective(whole)(batch)
    expected = {"": whole(batch.pixel_values, batch.pixel_mask, labels=batch.targets).loss_dict}
    for layer in (0, 1):
        shorter = DetrForObjectDetection(models.config(model_type=model_type, decoder_layers=layer + 1, id2label=labels))
        shorter.eval().load_state_dict({name: whole.state_dict()[name] for name in shorter.state_dict()})
        expected[f"_{layer}"] = shorter(batch.pixel_values, batch.pixel_mask, labels=batch.targets).loss_dict
    assert set(terms) == {name + suffix for suffix, found in expected.items() for name in found}
    for suffix, found in expected.items():
        for name, value in found.items():
            assert torch.allclose(terms[name + suffix], value, rtol=1e-4, atol=1e-6), name + suffix
    assert loss > 1.5 * (terms["loss_ce"] + 5 * terms["loss_bbox"] + 2 * terms["loss_giou"])


def test_masks_on_a_detector_that_stays(model: DetrForSegmentation, batch: Batch) -> None:
    whole = model(batch.pixel_values, batch.pixel_mask, labels=batch.targets).loss_dict
    loss, terms = MaskObjective(model, with_detector=False)(batch)
    assert torch.allclose(loss, whole["loss_mask"] + whole["loss_dice"], rtol=1e-4)
    assert "loss_ce" in terms  # still logged
    loss.backward()
    assert all(parameter.grad is None for parameter in model.detr.parameters())
    assert all(parameter.grad is not None for parameter in model.mask_head.parameters())
    assert all(parameter.grad is not None for parameter in model.bbox_attention.parameters())


def test_a_batch_without_objects(model: DetrForSegmentation, batch: Batch) -> None:
    nothing = {
        "class_labels": torch.zeros(0, dtype=torch.int64),
        "boxes": torch.zeros(0, 4),
        "masks": torch.zeros(0, *batch.pixel_values.shape[2:]),
    }
    empty = Batch(batch.pixel_values, batch.pixel_mask, [nothing] * len(batch.targets))
    for objective in (DetectorObjective(model), MaskObjective(model, with_detector=True)):
        loss, _ = objective(empty)
        assert loss.isfinite()
        loss.backward()
