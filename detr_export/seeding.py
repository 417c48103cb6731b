"""Seeded weights under which a DETR's outputs vary from image to image, for trying things without a trained checkpoint.

A freshly initialised DETR gives nearly the same boxes for every image. So comparing two runtimes on it proves little: a file
that ignores its input would pass. Here batch norm has the statistics of random images, as in a trained network; the
transformer is Xavier-initialised and the queries are unit normal. Then logits differ by several units between images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from detr_export import coco
from detr_export.config import DetrConfig
from detr_export.modeling.batch_norm import DetrFrozenBatchNorm2d
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.resnet import ResidualBlock
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.random_images import random_images
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

_IMAGE_SIDE = 160  # pixels of the images that the statistics are taken from
_IMAGES = 8
# If each residual branch added as much as its shortcut carries, fifty layers would amplify rounding a thousand times.
_BRANCH_GAIN = 0.3
# Nearly uniform cross-attention shows every query the same average, and all queries would give the same answer.
_SHARPNESS = 5.0  # of its query and key projections, times Xavier's gain
_CONTENT_GAIN = 4.0  # of its value and output projections
# Attention maps sum to one over thousands of positions; without a gain they would hardly affect the mask head.
_ATTENTION_MAP_GAIN = 100.0
_HEAD_GAIN = 3.0  # of the last layers, so that scores and boxes vary


@torch.no_grad()
def seed_weights(model: nn.Module, seed: int = 0) -> None:
    """Overwrites every parameter and statistic of a DETR, reproducibly for one version of torch.

    Args:
        model: `DetrForObjectDetection` or `DetrForSegmentation`; it is left in eval mode.
        seed: of the weights and of the images behind the statistics.
    """
    # The weights, drawn in the order of their names.
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            norm_weight = name.endswith("weight")
            parameter.normal_(1.0 if norm_weight else 0.0, 0.1, generator=generator)
        elif "query_position_embeddings" in name:
            parameter.normal_(generator=generator)
        elif parameter.dim() == 4 and "conv_encoder" in name:
            nn.init.kaiming_normal_(parameter, generator=generator)
        else:
            nn.init.xavier_uniform_(parameter, _gain(name), generator=generator)
        if name == "mask_head.lay1.weight":
            heads = model.get_submodule("bbox_attention").num_heads
            assert isinstance(heads, int)
            parameter[:, -heads:] *= _ATTENTION_MAP_GAIN

    # The statistics of batch norm, and its scale, in one pass over random images.
    def adopt_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, DetrFrozenBatchNorm2d)
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance + 1e-3)
        norm.weight.normal_(1.0, 0.1, generator=generator).mul_(_BRANCH_GAIN if norm in closing else 1.0)
        norm.bias.normal_(0.0, 0.1, generator=generator)

    closing = {block.last_norm for block in model.modules() if isinstance(block, ResidualBlock)}
    norms = [module for module in model.modules() if isinstance(module, DetrFrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(adopt_statistics) for norm in norms]
    try:
        channels = model.get_parameter(_first_convolution(model)).shape[1]
        model(torch.from_numpy(random_images((_IMAGES, channels, _IMAGE_SIDE, _IMAGE_SIDE), seed)))
    finally:
        for hook in hooks:
            hook.remove()


def write_seeded_checkpoint(folder: str | Path, panoptic: bool = False, seed: int = 0) -> Path:
    """Writes a checkpoint with the architecture and classes of facebook/detr-resnet-50, and seeded weights.

    It runs exactly as long as the trained one. What it detects means nothing.

    Args:
        folder: where to write it; made when it is missing.
        panoptic: write the architecture and classes of facebook/detr-resnet-50-panoptic.
        seed: of the weights.

    Returns:
        The folder.
    """
    kind = DetrForSegmentation if panoptic else DetrForObjectDetection
    labels = coco.id2label(coco.PANOPTIC_LABELS if panoptic else coco.DETECTION_LABELS)
    model = kind(DetrConfig(use_pretrained_backbone=False, id2label=labels))
    seed_weights(model, seed)
    model.save_pretrained(folder, DetrImageProcessor(format="coco_panoptic" if panoptic else "coco_detection"))
    return Path(folder)


def _gain(name: str) -> float:
    parent, _, layer = name.removesuffix(".weight").rpartition(".")
    if parent.endswith(("encoder_attn", "bbox_attention")):
        return _SHARPNESS if layer in ("q_proj", "k_proj", "q_linear", "k_linear") else _CONTENT_GAIN
    return _HEAD_GAIN if name.endswith(("class_labels_classifier.weight", "bbox_predictor.layers.2.weight")) else 1.0


def _first_convolution(model: nn.Module) -> str:
    return next(name for name, parameter in model.named_parameters() if parameter.dim() == 4)
