"""ResNet backbones in the two layouts that DETR checkpoints use.

`TimmResNet` has the parameter names of timm and torchvision (`layer1.0.conv1.weight`): the hub's default layout and that
of the original `.pth` files. `TransformersResNet` has those of transformers' `ResNetBackbone`
(`encoder.stages.0.layers.0.layer.0.convolution.weight`): the `no_timm` layout. The classification head is left out of both.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detr_export.backbone_config import RESNETS, ResNetConfig
from detr_export.modeling.activations import activation
from detr_export.runtimes.errors import CheckpointError

_BOTTLENECK_EXPANSION = 4


class ResidualBlock(nn.Module):
    """What the blocks of both layouts share."""

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch, just before the sum."""
        raise NotImplementedError


class _BasicBlock(ResidualBlock):
    """Two 3x3 convolutions. The first has the stride and, in a dilated stage, the dilation of the previous stage."""

    def __init__(self, channels_in: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, first_dilation, first_dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _projection(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2


class _Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions. The 3x3 has the stride and, in a dilated stage, the dilation of the previous stage."""

    def __init__(self, channels_in: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__()
        channels_out = width * _BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, first_dilation, first_dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.downsample = _projection(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3


def _projection(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


class TimmResNet(nn.Module):
    """ResNet-18/34/50/101/152 with timm's parameter names.

    Args:
        name: one of `RESNETS`.
        in_channels: channels of the image.
        output_stride: 32, 16 (DC5) or 8; with 16 or 8 the last stages have a dilation instead of a stride.
        out_indices: which feature maps `forward` returns; 0 is the stem before pooling, 1 to 4 are the stages,
            -1 is the last.
    """

    def __init__(
        self, name: str, in_channels: int = 3, output_stride: int = 32, out_indices: Sequence[int] = (1, 2, 3, 4)
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise CheckpointError(f"output_stride is {output_stride}; expected 8, 16 or 32")
        if not out_indices or not all(-5 <= index <= 4 for index in out_indices):
            raise CheckpointError(f"out_indices are {list(out_indices)}; expected numbers from 0 to 4, or -1 for the last")
        bottleneck, depths = RESNETS[name]
        block = _Bottleneck if bottleneck else _BasicBlock
        self.out_indices = tuple(sorted(index % 5 for index in out_indices))
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)

        # Each stage after the first halves the resolution; beyond the output stride it is dilated instead.
        channels, sizes, reached_stride, dilation = 64, [64], 4, 1
        for stage in range(max(self.out_indices)):
            stride = 1 if stage == 0 else 2
            first_dilation = dilation
            if stride * reached_stride > output_stride:
                stride, dilation = 1, dilation * 2
            reached_stride *= stride
            width = 64 << stage
            layers = []
            for index in range(depths[stage]):
                layers.append(
                    block(channels, width, stride if index == 0 else 1, dilation if index else first_dilation, dilation)
                )
                channels = width * (_BOTTLENECK_EXPANSION if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            sizes.append(channels)
        self.channels = [sizes[index] for index in self.out_indices]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (B, in_channels, H, W) to the feature maps named by `out_indices`, finest first."""
        x = self.relu(self.bn1(self.conv1(pixel_values)))
        maps = [x]
        x = self.maxpool(x)
        for stage in range(1, max(self.out_indices) + 1):
            x = getattr(self, f"layer{stage}")(x)
            maps.append(x)
        return [maps[index] for index in self.out_indices]


class _ConvLayer(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, act: str | None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(channels_out)
        self.activation = nn.Identity() if act is None else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(x)))


class _ResidualLayer(ResidualBlock):
    """One residual layer. As in transformers, its inner activation is always ReLU; the one after the sum is `hidden_act`."""

    def __init__(self, config: ResNetConfig, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        projected = channels_in != channels_out or stride != 1
        self.shortcut = _ConvLayer(channels_in, channels_out, 1, stride, None) if projected else nn.Identity()
        if config.layer_type == "basic":
            self.layer = nn.Sequential(
                _ConvLayer(channels_in, channels_out, 3, stride, "relu"),
                _ConvLayer(channels_out, channels_out, 3, 1, None),
            )
        else:
            width = channels_out // _BOTTLENECK_EXPANSION
            first = config.downsample_in_bottleneck
            self.layer = nn.Sequential(
                _ConvLayer(channels_in, width, 1, stride if first else 1, "relu"),
                _ConvLayer(width, width, 3, 1 if first else stride, "relu"),
                _ConvLayer(width, channels_out, 1, 1, None),
            )
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x) + self.shortcut(x))

    @property
    def last_norm(self) -> nn.Module:
        last = self.layer[-1]
        assert isinstance(last, _ConvLayer)
        return last.normalization


class _Stem(nn.Module):
    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.embedder = _ConvLayer(config.num_channels, config.embedding_size, 7, 2, config.hidden_act)
        self.pooler = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooler(self.embedder(x))


class _Stage(nn.Module):
    def __init__(self, config: ResNetConfig, channels_in: int, channels_out: int, stride: int, depth: int) -> None:
        super().__init__()
        rest = [_ResidualLayer(config, channels_out, channels_out, 1) for _ in range(depth - 1)]
        self.layers = nn.Sequential(_ResidualLayer(config, channels_in, channels_out, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TransformersResNet(nn.Module):
    """ResNet with arbitrary stages and the parameter names of transformers' `ResNetBackbone`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.out_indices = tuple(config.stage_names.index(name) for name in config.outputs)
        self.embedder = _Stem(config)
        stages, channels = [], config.embedding_size
        for index, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            stride = 2 if index or config.downsample_in_first_stage else 1
            stages.append(_Stage(config, channels, size, stride, depth))
            channels = size
        self.encoder = nn.ModuleDict({"stages": nn.ModuleList(stages)})
        sizes = (config.embedding_size, *config.hidden_sizes)
        self.channels = [sizes[index] for index in self.out_indices]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (B, num_channels, H, W) to the feature maps named by `out_features`, finest first."""
        maps = [self.embedder(pixel_values)]
        for stage in self.encoder["stages"].children():
            maps.append(stage(maps[-1]))
        return [maps[index] for index in self.out_indices]
