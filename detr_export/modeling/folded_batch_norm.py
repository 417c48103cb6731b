"""Batch norm folded into the convolutions, as exported files compute it: `(x w) scale + shift` is `x (w scale) + shift`.

It is folded in float64 and rounded once. The simplifier would fold it in float32, and only where it is asked to run.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from detr_export.modeling.backbone import DetrConvEncoder
from detr_export.modeling.batch_norm import DetrFrozenBatchNorm2d
from detr_export.modeling.resnet import TimmResNet, TransformersResNet


@torch.no_grad()
def fold_batch_norm(encoder: DetrConvEncoder) -> None:
    """Folds every batch norm of a backbone that is written here, where each follows its convolution, and no other.

    Backbones that timm itself makes are left as they are: how their layers follow each other is not known here.
    """
    if not isinstance(encoder.model, (TimmResNet, TransformersResNet)):
        return
    for parent in list(encoder.model.modules()):
        for (_, convolution), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, DetrFrozenBatchNorm2d):
                dtype = convolution.weight.dtype
                scale, shift = norm.double().scale_and_shift()
                weight = convolution.weight.double() * scale[:, None, None, None]
                convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
                convolution.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
                setattr(parent, name, nn.Identity())
