"""The convolutional backbone of a DETR, and the masks that go with its feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detr_export.backbone_config import RESNETS, ResNetConfig
from detr_export.config import DetrConfig
from detr_export.modeling.batch_norm import freeze_batch_norm
from detr_export.modeling.position_encoding import build_position_encoding
from detr_export.modeling.resnet import TimmResNet, TransformersResNet
from detr_export.modeling.same_padding import trace_same_padding
from detr_export.runtimes.errors import CheckpointError, first_line, missing_extra

# Options of timm's feature extractor that our own ResNet understands. With any other one, timm makes the backbone.
_OWN_OPTIONS = {"out_indices", "in_chans", "output_stride"}


class DetrConvEncoder(nn.Module):
    """The backbone with frozen batch norm. `channels` are those of the feature maps, finest first."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        if config.use_timm_backbone:
            self.model, self.channels = _timm_backbone(config)
        else:
            assert isinstance(config.backbone_config, ResNetConfig)  # DetrConfig fills it in
            self.model = TransformersResNet(config.backbone_config)
            self.channels = self.model.channels
        freeze_batch_norm(self.model)
        _freeze_stem(config, self.model)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (B, num_channels, H, W) to feature maps, finest first; the last one is the transformer's input."""
        return self.model(pixel_values)


class DetrConvModel(nn.Module):
    """The backbone together with the position encoding of its coarsest feature map."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.conv_encoder = DetrConvEncoder(config)
        self.position_embedding = build_position_encoding(config)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Runs the backbone.

        Args:
            pixel_values: (B, num_channels, H, W), float.
            pixel_mask: (B, H, W), 1 = real pixel, 0 = padding; all real when None.

        Returns:
            The feature maps, finest first; the mask of the coarsest, (B, h, w) bool, or None if all is real; and its
            position encoding, (B, d_model, h, w), float. Without a mask sine encodings are (1, d_model, h, w).
        """
        features = self.conv_encoder(pixel_values)
        mask = None if pixel_mask is None else downsample_mask(pixel_mask, features[-1])
        return features, mask, self.position_embedding(features[-1], mask)


def downsample_mask(pixel_mask: Tensor, feature_map: Tensor) -> Tensor:
    """Samples (B, H, W) at the size of `feature_map` (B, C, h, w); returns (B, h, w) bool.

    Row i reads row floor(i * (H / h)), in float32: the numbers of `torch.nn.functional.interpolate(mode="nearest")`.
    They are written out because the ONNX `Resize` operator divides by the rounded h / H instead, and then picks the
    neighbouring row where i * H / h is a whole number (H=750, h=24, i=4), which moves the edge of the padding.
    """
    mask = pixel_mask if pixel_mask.dtype == torch.bool else pixel_mask != 0
    for dim in (1, 2):
        size, target = mask.shape[dim], feature_map.shape[dim + 1]
        steps = torch.arange(target, device=mask.device, dtype=torch.float32)
        rows = (steps * (size / target)).floor().to(torch.int64)  # below `size`: the last is size - size / target
        mask = mask.index_select(dim, rows)
    return mask


def pretrained_backbone(config: DetrConfig) -> dict[str, Tensor]:
    """ImageNet weights for the backbone, fetched by timm, without the classifier.

    Raises:
        CheckpointError: the backbone is not timm's, timm has no weights for it, or they could not be fetched.
        BackendError: timm is not installed.
    """
    if not config.use_timm_backbone:
        raise CheckpointError("a no_timm backbone has no pretrained weights to fetch; set use_pretrained_backbone to false")
    return dict(_from_timm(config, pretrained=True).state_dict())


def _timm_backbone(config: DetrConfig) -> tuple[nn.Module, list[int]]:
    architecture = (config.backbone or "").partition(".")[0]  # timm appends the training recipe: resnet50.a1_in1k
    options = config.timm_options
    if architecture in RESNETS and set(options) <= _OWN_OPTIONS:
        stride = options.get("output_stride", 32)
        resnet = TimmResNet(architecture, options["in_chans"], stride, options["out_indices"])
        return resnet, resnet.channels
    model = _from_timm(config, pretrained=False)
    trace_same_padding(model)
    return model, list(model.feature_info.channels())  # type: ignore[union-attr,operator]


def _from_timm(config: DetrConfig, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise missing_extra(f"timm, which makes the backbone {config.backbone!r},", "oracle") from None
    try:
        return timm.create_model(config.backbone or "", pretrained=pretrained, features_only=True, **config.timm_options)
    except Exception as error:  # timm raises whatever the architecture's own code raises
        raise CheckpointError(f"timm cannot make the backbone {config.backbone!r}: {first_line(error)}") from error


def _freeze_stem(config: DetrConfig, model: nn.Module) -> None:
    """Stops gradients of a ResNet's stem and first stage, which DETR's recipe does not train.

    transformers means to do the same to a `no_timm` backbone, but looks for names that are not there and freezes all of it.
    """
    if config.use_timm_backbone and "resnet" not in (config.backbone or ""):
        return
    trained = ("layer2", "layer3", "layer4") if config.use_timm_backbone else ("stages.1", "stages.2", "stages.3")
    for name, parameter in model.named_parameters():
        if not any(part in name for part in trained):
            parameter.requires_grad_(False)
