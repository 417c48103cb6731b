"""The transformer as exported files compute it, against the model that it is made from, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.fused_transformer import fuse
from detr_export.modeling.position_encoding import _running_count
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.seeding import random_images, seed_weights
from tests import models

# The largest difference of all cases is 2.2e-13, of mask logits; without masks it is 9.1e-14.
ATOL = 1e-11
VARIED = 1e-3  # what images differ by at least, or agreement would prove little
HEIGHT, WIDTH = 96, 131

CASES: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"model_type": "table-transformer"},
    "auxiliary": {"auxiliary_loss": True},
    "pre-norm, auxiliary": {"model_type": "table-transformer", "auxiliary_loss": True},
    "learned positions": {"position_embedding_type": "learned"},
    "dilation": {"backbone": "resnet18", "dilation": True},
    "one layer each": {"encoder_layers": 1, "decoder_layers": 1},
    "one layer each, pre-norm, auxiliary": {
        "model_type": "table-transformer",
        "encoder_layers": 1,
        "decoder_layers": 1,
        "auxiliary_loss": True,
    },
    "no encoder layers": {"encoder_layers": 0},  # as in the DETR paper's table 2
    "more decoder than encoder layers": {"encoder_layers": 1, "decoder_layers": 3},
    "other heads in the decoder": {"encoder_attention_heads": 2, "decoder_attention_heads": 8},
    "one head": {"encoder_attention_heads": 1, "decoder_attention_heads": 1},
    "heads of 12": {"d_model": 48, "activation_function": "gelu"},
    "hidden states by default": {"output_attentions": True, "output_hidden_states": True},
}


def seeded_segmenter() -> DetrForSegmentation:
    model = DetrForSegmentation(models.config(encoder_attention_heads=8, decoder_attention_heads=8))
    seed_weights(model, 0)
    return model


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """Images in float64: whole, padded on two sides, all padding; and their mask."""
    pixel_mask = torch.zeros((batch, HEIGHT, WIDTH), dtype=torch.int64)
    for index, (height, width) in enumerate([(HEIGHT, WIDTH), (60, 70), (0, 0)][:batch]):
        pixel_mask[index, :height, :width] = 1
    pixel_values = torch.from_numpy(random_images((batch, 3, HEIGHT, WIDTH), seed=3)).double()
    return pixel_values, pixel_mask


@torch.no_grad()
def assert_fused_alike(model: DetrForObjectDetection | DetrForSegmentation) -> None:
    """One image and three, with and without a mask, every output."""
    reference = DeployedModel(model.double(), attentions=True)
    deployed = copy.deepcopy(reference)
    fuse(deployed.model.base)
    for batch in (1, 3):
        pixel_values, pixel_mask = inputs(batch)
        for mask in (pixel_mask, None):
            expected, given = reference(pixel_values, mask), deployed(pixel_values, mask)
            assert list(given) == list(expected)
            for name, value in expected.items():
                torch.testing.assert_close(
                    given[name], value, atol=ATOL, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
                )
                assert batch == 1 or (value[0] - value[1]).abs().max() > VARIED, name


@pytest.mark.parametrize("name", CASES)
def test_a_detector_gives_the_same(name: str) -> None:
    assert_fused_alike(models.seeded(models.config(**CASES[name])))


def test_a_segmenter_gives_the_same() -> None:
    assert_fused_alike(seeded_segmenter())


def test_no_image_depends_on_another() -> None:
    """Keys, values and masks of all images and heads share one dimension."""
    model = models.seeded(models.config()).double()
    fuse(model.base)
    pixel_values, pixel_mask = inputs(3)
    deployed = DeployedModel(model)
    with torch.no_grad():
        together = deployed(pixel_values, pixel_mask)
        alone = [deployed(pixel_values[index : index + 1], pixel_mask[index : index + 1]) for index in range(3)]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([item[name] for item in alone]), atol=ATOL, rtol=0)


def test_weights_are_computed_in_float64_and_rounded_once() -> None:
    single = models.seeded(models.config())
    double = copy.deepcopy(single).double()
    fuse(single.base)
    fuse(double.base)
    exact = double.base.state_dict()
    rounded = 0
    for name, value in single.base.state_dict().items():
        assert value.dtype == torch.float32, name
        if name.startswith(("input_projection.", "encoder.", "decoder.")):
            assert torch.equal(value, exact[name].float()), name
            rounded += not torch.equal(value.double(), exact[name])
    assert rounded > 4  # the scaled weights of queries, the biases of output projections, the constants of the first layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rest_of_the_model_is_left_alone(dtype: torch.dtype) -> None:
    model = seeded_segmenter().to(dtype)
    before = copy.deepcopy(model)
    model.base.train()
    fuse(model.base)
    assert not any(module.training for module in model.modules())
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    old, new = before.state_dict(), model.state_dict()
    kept = old.keys() & new.keys()
    changed = {name for name in kept if not torch.equal(new[name], old[name])}
    assert {name.rpartition(".layers.")[0] or name for name in old.keys() - kept} == {
        "detr.model.encoder",
        "detr.model.decoder",
    }
    assert {name.split("_attn.")[-1] for name in changed} == {
        *("out_proj.bias", "q_proj.weight", "q_proj.bias"),
        "detr.model.input_projection.weight",
    }
    pixel_values = inputs(2)[0].to(dtype)
    with torch.no_grad():
        assert torch.equal(model.base.run(pixel_values).features[-1], before.base.run(pixel_values).features[-1])


def test_the_model_of_a_copy_stays_as_it_was() -> None:
    model = models.seeded(models.config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fuse(copy.deepcopy(model).base)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (2, 25, 34), (1, 50, 84), (4, 84, 3)])
def test_running_counts_are_cumulative_sums(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for share in (0.0, 0.3, 0.9, 1.0):
        mask = torch.rand(shape) < share
        for axis in (1, 2):
            counted = _running_count(mask.transpose(1, axis), dtype).transpose(1, axis)
            expected = mask.cumsum(axis, dtype=dtype)
            assert counted.dtype == dtype
            assert torch.equal(counted, expected)
