"""Fresh weights to train from."""

from __future__ import annotations

import torch
from torch import nn

from detr_export.modeling.detr import DetrWithHeads


@torch.no_grad()
def draw_weights(model: DetrWithHeads) -> None:
    """Draws the weights above the backbone as facebookresearch/detr does.

    Xavier-uniform for the matrices of the transformer (`Transformer._reset_parameters`), unit normal for the queries, and
    PyTorch's own choice for the projection and the heads. `init_weights` draws as transformers does, normal with a
    deviation of 0.02, for a checkpoint to overwrite. Training cannot start from that: the queries look alike, and they do
    not learn to differ within thousands of steps.
    """
    base = model.base
    for part in (base.encoder, base.decoder):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(base.query_position_embeddings.weight)
    base.input_projection.reset_parameters()
    draw_class_head(model)
    for module in model.detector.bbox_predictor.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def draw_class_head(model: DetrWithHeads) -> None:
    """Draws the classifier alone, for new classes on trained weights."""
    model.detector.class_labels_classifier.reset_parameters()


@torch.no_grad()
def draw_mask_head(mask_head: nn.Module) -> None:
    """Draws the convolutions of a mask head: He-uniform with slope 1, biases zero, as facebookresearch/detr does."""
    for module in mask_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
