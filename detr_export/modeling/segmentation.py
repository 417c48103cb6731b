"""`DetrForSegmentation`: a mask for each query on top of the detector (DETR paper, section 4.4).

The numbers are those of transformers 4.57's class, up to rounding. The input of the mask head's first convolution is, for
every query, the same feature map and the query's own attention maps. A convolution is linear, so it is computed here as the
sum of two: one of the feature map, once for each image, and one of the attention maps. For 100 queries and the published
model that saves 96 % of its multiplications, 51 of the 53 GMAC at 800x1066.

So the work is in two steps: what an image gives to all of its masks (`MaskFeatures`), and the masks of some queries. No
query sees another in the second, so a mask is the same whichever others are drawn with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from detr_export.checkpoints.reading import Checkpoint
from detr_export.config import DetrConfig
from detr_export.modeling.detr import DetrForObjectDetection, DetrWithHeads, Pass
from detr_export.modeling.loss import Prediction
from detr_export.modeling.outputs import DetrSegmentationOutput
from detr_export.runtimes.errors import CheckpointError

_GROUPS = 8  # of every GroupNorm; fewer where it has fewer channels
_PYRAMID_LEVELS = 3  # feature maps that the mask head adds, the finest ones


@dataclass(frozen=True)
class MaskFeatures:
    """What images give to their masks, whatever the queries are."""

    keys: Tensor  # (B, d_model, h, w), of the attention over the encoder's output
    shared: Tensor  # (B, d_model + heads, h, w), the feature map's part of the first convolution
    pyramid: tuple[Tensor, ...]  # three maps, coarsest first, with the channels of the layers that they are added to
    mask: Tensor | None  # (B, h, w) bool, True = real; None when every pixel is real


class DetrMHAttentionMap(nn.Module):
    """Attention weights of each query over the encoder's output, without values; one softmax over all heads."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scaling = (dim / num_heads) ** -0.5
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Maps queries (B, Q, dim), keys (B, dim, h, w) and a mask (B, h, w), True = real, to (B, Q, heads, h, w)."""
        height, width = keys.shape[-2:]
        query = (self.q_linear(queries) * self.scaling).unflatten(2, (self.num_heads, -1))
        key = keys.flatten(2).unflatten(1, (self.num_heads, -1))
        scores = query.transpose(1, 2) @ key  # (B, heads, Q, h * w)
        if mask is not None:
            scores = torch.where(mask.flatten(1)[:, None, None], scores, torch.finfo(scores.dtype).min)
        weights = functional.softmax(scores.transpose(1, 2).flatten(2), dim=-1)
        return weights.unflatten(2, (self.num_heads, height, width))


class DetrMaskHeadSmallConv(nn.Module):
    """A small feature pyramid with GroupNorm, which runs for each query.

    Args:
        dim: channels of feature map and attention maps together, a multiple of 8.
        fpn_dims: channels of the three finest feature maps, coarsest first.
        context_dim: the layers have a half to a sixteenth of these channels.

    Raises:
        CheckpointError: `dim` is not a multiple of 8, or a layer's channels make no groups.
    """

    def __init__(self, dim: int, fpn_dims: Sequence[int], context_dim: int) -> None:
        super().__init__()
        if dim % _GROUPS:
            raise CheckpointError(
                f"d_model plus encoder_attention_heads is {dim}; a mask head needs a multiple of {_GROUPS}"
            )
        widths = [dim, context_dim // 2, context_dim // 4, context_dim // 8, context_dim // 16]
        if any(width < 1 or width % min(_GROUPS, width) for width in widths):
            raise CheckpointError(
                f"d_model is {context_dim}, and a mask head has layers of {widths[1:]} channels; "
                f"expected multiples of {_GROUPS}, or 1 to {_GROUPS}, as of d_model 16, 32, 64, 128 or 256"
            )
        self.lay1, self.gn1 = _PartialConv2d(dim, dim, 3, padding=1), _norm(dim)
        self.lay2, self.gn2 = _block(dim, widths[1])
        self.lay3, self.gn3 = _block(widths[1], widths[2])
        self.lay4, self.gn4 = _block(widths[2], widths[3])
        self.lay5, self.gn5 = _block(widths[3], widths[4])
        self.out_lay = nn.Conv2d(widths[4], 1, 3, padding=1)
        self.adapter1 = nn.Conv2d(fpn_dims[0], widths[1], 1)
        self.adapter2 = nn.Conv2d(fpn_dims[1], widths[2], 1)
        self.adapter3 = nn.Conv2d(fpn_dims[2], widths[3], 1)

    def of_images(self, features: Tensor, pyramid: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What all masks of an image share.

        Args:
            features: (B, C, h, w), the projected feature map.
            pyramid: the three finest feature maps, coarsest first.

        Returns:
            `shared` and `pyramid` of `MaskFeatures`.
        """
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        return self.lay1(features), tuple(adapter(finer) for adapter, finer in zip(adapters, pyramid, strict=True))

    def forward(self, shared: Tensor, pyramid: Sequence[Tensor], attention: Tensor) -> Tensor:
        """Draws a mask for each query.

        Args:
            shared, pyramid: from `of_images`.
            attention: (B, Q, heads, h, w).

        Returns:
            (B, Q, H, W) logits at the size of the last of `pyramid`.
        """
        batch, queries = attention.shape[:2]
        own = self.lay1(attention.flatten(0, 1), self.lay1.in_channels - attention.shape[2])
        x = _add_to_queries(own, shared, queries)
        x = functional.relu(self.gn1(x))
        x = functional.relu(self.gn2(self.lay2(x)))
        stages = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for (layer, norm), finer in zip(stages, pyramid, strict=True):
            x = functional.interpolate(x, size=finer.shape[-2:], mode="nearest")
            x = _add_to_queries(x, finer, queries)
            x = functional.relu(norm(layer(x)))
        return self.out_lay(x).unflatten(0, (batch, queries)).squeeze(2)


class DetrForSegmentation(DetrWithHeads):
    """`DetrForObjectDetection` with a mask for each query.

    Raises:
        CheckpointError: the backbone gives fewer than three feature maps.
    """

    output_type = DetrSegmentationOutput
    # How many queries' masks are drawn at a time, all when None. Few at a time take less memory: at 800x1066 and in float64,
    # all 100 of the published model take more than 10 GB.
    masks_at_once: int | None = None

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.detr = DetrForObjectDetection(config)
        channels = self.detr.model.backbone.conv_encoder.channels
        if len(channels) < _PYRAMID_LEVELS:
            raise CheckpointError(f"the backbone gives {len(channels)} feature maps; a mask head needs {_PYRAMID_LEVELS}")
        heads = config.encoder_attention_heads
        self.mask_head = DetrMaskHeadSmallConv(config.d_model + heads, channels[::-1][-_PYRAMID_LEVELS:], config.d_model)
        self.bbox_attention = DetrMHAttentionMap(config.d_model, heads)
        self.init_weights()

    @classmethod
    def _own_part(cls, checkpoint: Checkpoint) -> dict[str, Tensor]:
        if checkpoint.task != "segmentation":
            raise CheckpointError(f"{checkpoint.source} has no mask head; expected a segmentation checkpoint")
        return dict(checkpoint.state_dict)

    def predict(self, run: Pass) -> Prediction:
        """What the heads make of a pass."""
        queries = run.decoded.last_hidden_state
        assert queries is not None
        return Prediction(*self.detr.heads(queries), pred_masks=self.draw_masks(run, queries))

    def draw_masks(self, run: Pass, queries: Tensor) -> Tensor:
        """Draws a mask for each of some queries of a pass, each on its own.

        Args:
            run: the pass.
            queries: (B, N, d_model), last hidden states of all queries, or of those whose masks are wanted.

        Returns:
            (B, N, h, w) logits at the size of the finest feature map: H/4, W/4 unless the backbone leaves that one out.
        """
        features = self.mask_features(run)
        if self.masks_at_once is None:
            return self.masks_of(queries, features)
        return torch.cat([self.masks_of(some, features) for some in queries.split(self.masks_at_once, dim=1)], dim=1)

    def mask_features(self, run: Pass) -> MaskFeatures:
        """The first step of `draw_masks`, once for each image."""
        memory = run.encoded.last_hidden_state
        assert memory is not None
        keys = self.bbox_attention.k_linear(memory).transpose(1, 2).unflatten(2, run.projected.shape[-2:])
        pyramid = [run.features[2], run.features[1], run.features[0]]
        return MaskFeatures(keys, *self.mask_head.of_images(run.projected, pyramid), run.mask)

    def masks_of(self, queries: Tensor, features: MaskFeatures) -> Tensor:
        """The second step: (B, N, d_model) to (B, N, h, w)."""
        attention = self.bbox_attention(queries, features.keys, features.mask)
        return self.mask_head(features.shared, features.pyramid, attention)

    @property
    def detector(self) -> DetrForObjectDetection:
        """The detector that the masks are drawn on top of."""
        return self.detr


def _block(channels_in: int, channels_out: int) -> tuple[nn.Conv2d, nn.GroupNorm]:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1), _norm(channels_out)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(_GROUPS, channels), channels)


class _PartialConv2d(nn.Conv2d):
    """A convolution of some of its channels. Those from 0 on bring the bias, so that the parts add up to the whole."""

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        weight = self.weight[:, start : start + x.shape[1]]
        return functional.conv2d(x, weight, self.bias if start == 0 else None, padding=self.padding)


def _add_to_queries(x: Tensor, shared: Tensor, queries: int) -> Tensor:
    """Adds (B, C, h, w) to each of the queries of its image, (B * Q, C, h, w)."""
    return (x.unflatten(0, (-1, queries)) + shared[:, None]).flatten(0, 1)
