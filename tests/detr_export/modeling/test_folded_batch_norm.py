"""Folding batch norm changes nothing but the rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from detr_export.modeling.batch_norm import DetrFrozenBatchNorm2d
from detr_export.modeling.folded_batch_norm import fold_batch_norm
from tests import models


def norms(module: torch.nn.Module) -> int:
    return sum(isinstance(item, DetrFrozenBatchNorm2d) for item in module.modules())


@pytest.mark.parametrize(
    "changes",
    [{}, {"backbone": "resnet18"}, {"backbone": "resnet50", "dilation": True}],
    ids=["no_timm", "resnet18", "dc5"],
)
def test_feature_maps_stay_what_they_are(changes: dict[str, Any]) -> None:
    encoder = models.seeded(models.config(**changes)).model.backbone.conv_encoder.double()
    before = norms(encoder)
    folded = copy.deepcopy(encoder)
    fold_batch_norm(folded)
    assert norms(encoder) == before > 5
    assert norms(folded) == 0
    images = torch.randn(2, 3, 70, 99, dtype=torch.float64)
    with torch.no_grad():
        for ours, expected in zip(folded(images), encoder(images), strict=True):
            assert (ours - expected).abs().max() < 1e-11 * expected.abs().max()


def test_weights_are_rounded_once() -> None:
    encoder = models.seeded(models.config()).model.backbone.conv_encoder
    exact = copy.deepcopy(encoder).double()
    fold_batch_norm(encoder)
    fold_batch_norm(exact)
    for ours, expected in zip(encoder.parameters(), exact.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected.float())


def test_a_backbone_of_timm_is_left_alone() -> None:
    encoder = models.seeded(models.config(backbone="mobilenetv3_small_050")).model.backbone.conv_encoder
    before = norms(encoder)
    fold_batch_norm(encoder)
    assert norms(encoder) == before > 5
