"""`DetrForSegmentation` against transformers 4.57's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import CheckpointError
from detr_export.seeding import random_images, seed_weights
from tests import models
from tests.detr_export.modeling.test_forward import assert_close

HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
CASES: dict[str, dict[str, Any]] = {
    "no_timm": {},
    "r50": {"backbone": "resnet50", "d_model": 64},
    "r18-dc5": {"backbone": "resnet18", "dilation": True, "d_model": 64},
    "auxiliary": {"auxiliary_loss": True},
    # As transformers' own tests build it: the coarsest map is the transformer's input and the pyramid's first level.
    "three maps": {"backbone_config": {**models.TINY_BACKBONE, "out_features": ["stage2", "stage3", "stage4"]}},
}


def pair(**changes: Any) -> tuple[DetrForSegmentation, Any]:
    import transformers

    ours = DetrForSegmentation(models.config(**{**HEADS, **changes}))
    seed_weights(ours)
    theirs = transformers.DetrForSegmentation(
        transformers.DetrConfig.from_dict({**ours.config.to_dict(), "use_pretrained_backbone": False})
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.eval()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(96, 128), (101, 139)], ids=str)
@torch.no_grad()
def test_same_numbers_as_transformers(name: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(**CASES[name])
    mask = torch.ones(3, *size, dtype=torch.int64)
    mask[1, 60:], mask[2, :, 50:] = 0, 0
    pixel_values = torch.from_numpy(random_images((3, 3, *size), 5)) * mask[:, None]
    given, expected = ours(pixel_values, mask), theirs(pixel_values, mask)
    spread = float((expected.pred_masks[0] - expected.pred_masks[1]).abs().max())
    assert spread > 0.3
    assert (given.pred_masks - expected.pred_masks).abs().max() <= 3e-4
    assert (given.logits - expected.logits).abs().max() <= 1e-4
    assert (given.pred_boxes - expected.pred_boxes).abs().max() <= 1e-5
    unmasked = ours(pixel_values).pred_masks, theirs(pixel_values).pred_masks
    assert (unmasked[0] - unmasked[1]).abs().max() <= 3e-4
    assert (unmasked[0] - given.pred_masks).abs().max() > 1e-2  # the mask matters


@torch.no_grad()
def test_all_outputs_and_tuples() -> None:
    ours, theirs = pair()
    pixel_values = torch.from_numpy(random_images((2, 3, 96, 128), 5))
    options = {"output_attentions": True, "output_hidden_states": True}
    given, expected = ours(pixel_values, **options), theirs(pixel_values, **options)
    assert list(given.keys()) == list(expected.keys())
    assert_close(dict(given.items()), dict(expected.items()))
    assert_close(ours(pixel_values, return_dict=False, **options), theirs(pixel_values, return_dict=False, **options))
    memory = given.encoder_last_hidden_state.flip(0)
    assert_close(
        ours(pixel_values, encoder_outputs=(memory,)).pred_masks, theirs(pixel_values, encoder_outputs=(memory,)).pred_masks
    )


@torch.no_grad()
def test_masks_may_be_drawn_a_few_at_a_time() -> None:
    ours, _ = pair()
    pixel_values = torch.from_numpy(random_images((2, 3, 96, 128), 5))
    expected = ours(pixel_values).pred_masks
    ours.masks_at_once = 4  # of 9
    given = ours(pixel_values).pred_masks
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= 3e-4


def test_refuses() -> None:
    with pytest.raises(CheckpointError, match="needs a multiple of 8"):
        DetrForSegmentation(models.config())
    backbone = {**models.TINY_BACKBONE, "out_features": ["stage4"]}
    with pytest.raises(CheckpointError, match="gives 1 feature maps; a mask head needs 3"):
        DetrForSegmentation(models.config(**HEADS, backbone_config=backbone))
