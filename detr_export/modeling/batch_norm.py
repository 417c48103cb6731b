"""Frozen batch norm: DETR keeps the statistics of its pretrained backbone, unless the backbone is trained from scratch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-5


class DetrFrozenBatchNorm2d(nn.Module):
    """Batch norm over (B, n, H, W) whose statistics and affine parameters are buffers, so no optimiser moves them.

    The epsilon is added before the reciprocal square root, as in facebookresearch/detr `models/backbone.py`. A
    checkpoint's `num_batches_tracked` has no meaning here and is dropped on loading.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The two vectors (n,) of `y = x * scale + shift` that this layer amounts to."""
        scale = self.weight * (self.running_var + EPSILON).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None] + shift[:, None, None]


def freeze_batch_norm(module: nn.Module) -> None:
    """Replaces every `nn.BatchNorm2d` below `module`, keeping its values.

    Subclasses are replaced, too, so timm's `BatchNormAct2d` loses its activation. transformers' DETR does the same to such
    backbones (MobileNet, EfficientNet), and the weights published for them were trained that way.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = DetrFrozenBatchNorm2d(child.num_features)
            state = {key: value for key, value in child.state_dict().items() if key != "num_batches_tracked"}
            frozen.load_state_dict(state)
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)


def unfreeze_batch_norm(module: nn.Module) -> None:
    """Replaces every `DetrFrozenBatchNorm2d` below `module` by a `nn.BatchNorm2d` that learns, keeping its values.

    The state dict keeps its names, so a frozen model reads it; that model drops the one new name, `num_batches_tracked`.
    """
    for name, child in module.named_children():
        if isinstance(child, DetrFrozenBatchNorm2d):
            learning = nn.BatchNorm2d(len(child.weight), eps=EPSILON)
            learning.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, learning)
        else:
            unfreeze_batch_norm(child)
