"""The reference model against transformers 4.57's, on weights that make outputs vary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from detr_export.backbone_config import RESNETS
from detr_export.modeling.backbone import downsample_mask
from detr_export.modeling.batch_norm import DetrFrozenBatchNorm2d
from detr_export.runtimes.errors import CheckpointError
from detr_export.seeding import random_images
from tests import models

LOGITS_ATOL, BOXES_ATOL = 1e-4, 1e-5
SMALL = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}

CASES: dict[str, dict[str, Any]] = {
    "r50": {"backbone": "resnet50"},
    "r50-dc5": {"backbone": "resnet50", "dilation": True},
    "r50-stride8": {"backbone": "resnet50", "backbone_kwargs": {"output_stride": 8}},
    "r101": {"backbone": "resnet101"},
    "r152": {"backbone": "resnet152"},
    "r18": {"backbone": "resnet18"},
    "r18-tagged": {"backbone": "resnet18.tv_in1k"},
    "r34-dc5": {"backbone": "resnet34", "dilation": True},
    "r18-stage3": {"backbone": "resnet18", "backbone_kwargs": {"out_indices": [0, 2, 3]}},
    "one-channel": {"backbone": "resnet18", "num_channels": 1},
    "mobilenet": {"backbone": "tf_mobilenetv3_small_075", "num_channels": 2},
    "learned": {"position_embedding_type": "learned"},
    "no_timm": {},
    "no_timm-default": {"backbone_config": None},
    "no_timm-bottleneck": {
        "backbone_config": {
            **models.TINY_BACKBONE,
            "layer_type": "bottleneck",
            "hidden_act": "gelu",
            "downsample_in_bottleneck": True,
            "downsample_in_first_stage": True,
        }
    },
    "gelu": {"activation_function": "gelu"},
    "auxiliary": {"auxiliary_loss": True},
}


def inputs(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images of one batch: whole, padded on both sides, padded almost away."""
    pixel_values = torch.from_numpy(random_images((3, channels, 139, 187), seed=3))
    pixel_mask = torch.zeros((3, 139, 187), dtype=torch.int64)
    for index, (height, width) in enumerate([(139, 187), (90, 121), (33, 187)]):
        pixel_mask[index, :height, :width] = 1
    return pixel_values * pixel_mask[:, None], pixel_mask


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_numbers_as_transformers(name: str) -> None:
    config = models.config(**{**SMALL, **CASES[name]})
    ours = models.seeded(config)
    theirs = models.oracle(config, ours.state_dict())
    pixel_values, pixel_mask = inputs(config.num_channels)
    given, expected = ours(pixel_values, pixel_mask), theirs(pixel_values, pixel_mask)
    assert (given.logits - expected.logits).abs().max() <= LOGITS_ATOL
    assert (given.pred_boxes - expected.pred_boxes).abs().max() <= BOXES_ATOL
    assert (given.last_hidden_state - expected.last_hidden_state).abs().max() <= LOGITS_ATOL
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 1000 * LOGITS_ATOL  # or agreement proves little
    assert (expected.pred_boxes[0] - expected.pred_boxes[1]).abs().max() > 1000 * BOXES_ATOL

    unmasked = ours(pixel_values), theirs(pixel_values)
    assert (unmasked[0].logits - unmasked[1].logits).abs().max() <= LOGITS_ATOL
    assert (unmasked[0].logits - given.logits)[1].abs().max() > 100 * LOGITS_ATOL  # the mask matters


@torch.no_grad()
def test_a_row_without_a_real_pixel_stays_finite() -> None:
    model = models.seeded(models.config())
    pixel_values, pixel_mask = inputs(3)
    pixel_mask[0] = 0
    outputs = model(pixel_values, pixel_mask)
    assert outputs.logits.isfinite().all()
    theirs = models.oracle(model.config, model.state_dict())(pixel_values, pixel_mask)
    assert (outputs.logits - theirs.logits).abs().max() <= LOGITS_ATOL


@torch.no_grad()
def test_masked_positions_play_no_part_in_attention() -> None:
    encoder = models.seeded(models.config()).model.encoder
    features, position = torch.randn(2, 12, 32), torch.randn(1, 12, 32)
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    other = torch.where(mask[..., None], features, 100 * torch.randn(2, 12, 32))
    first = encoder(features, mask, position).last_hidden_state
    second = encoder(other, mask, position).last_hidden_state
    assert torch.equal(first[mask], second[mask])
    assert not torch.equal(first[~mask], second[~mask])


@pytest.mark.parametrize("target", [1, 7, 24, 25, 50])
def test_mask_sampling_is_torchs_nearest(target: int) -> None:
    """Column by column: the sampled mask is real exactly where torch's nearest column is."""
    for size in [*range(target, target + 40), 16 * target, *range(700, 800), 1333]:
        columns = torch.arange(size)
        expected = functional.interpolate(columns.float()[None, None, None], size=(1, target), mode="nearest")[0, 0, 0]
        # Image i is real in torch's i-th column alone, so sampled position i, and no other, may see it.
        images = (columns == expected[:, None])[:, None]
        sampled = downsample_mask(images.long(), torch.empty(target, 1, 1, target))[:, 0]
        assert torch.equal(sampled, expected[:, None] == expected[None]), size


@pytest.mark.parametrize("name", RESNETS)
def test_feature_channels(name: str) -> None:
    channels = [64, 128, 256, 512] if name in ("resnet18", "resnet34") else [256, 512, 1024, 2048]
    model = models.seeded(models.config(backbone=name))
    assert model.model.backbone.conv_encoder.channels == channels


def test_batch_norm_is_frozen_and_the_stem_is_not_trained() -> None:
    model = models.seeded(models.config(backbone="resnet18"))
    norms = [module for module in model.modules() if isinstance(module, DetrFrozenBatchNorm2d)]
    assert len(norms) == 20
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    theirs = models.oracle(model.config)
    for (name, ours), (_, other) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        assert ours.requires_grad == other.requires_grad, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18", "backbone_kwargs": {"output_stride": 4}}, "output_stride is 4"),
        ({"backbone": "resnet18", "backbone_kwargs": {"out_indices": [5]}}, "out_indices are \\[5\\]"),
        ({"backbone": "no_such_net"}, "timm cannot make the backbone 'no_such_net'"),
        ({"activation_function": "swiglu"}, "activation 'swiglu' is not supported"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        models.seeded(models.config(**changes))


def test_outputs_answer_by_name_and_position() -> None:
    model = models.seeded(models.config())
    outputs = model(torch.zeros(1, 3, 64, 64))
    assert outputs["logits"] is outputs.logits
    assert outputs[1] is outputs.pred_boxes
    assert list(outputs)[:2] == ["logits", "pred_boxes"]
    assert "cross_attentions" not in outputs
    assert len(outputs.to_tuple()) == len(outputs) == 4
    with pytest.raises(KeyError):
        outputs["cross_attentions"]
