"""Position encodings of a feature map (DETR paper, section A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detr_export.config import DetrConfig

_TEMPERATURE = 10000
_EPSILON = 1e-6  # a row without a real pixel must not divide by zero
LEARNED_POSITIONS = 50  # rows and columns of a learned encoding: images of up to 1600 pixels at stride 32


class DetrSinePositionEmbedding(nn.Module):
    """Sines and cosines of the row and column, counted over real pixels only and normalised to (0, 2 pi].

    Args:
        embedding_dim: channels for each axis, half of the transformer's width; even.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim

    def forward(self, feature_map: Tensor, mask: Tensor | None) -> Tensor:
        """Maps a mask (B, h, w) bool, True = real, to (B, 2 * embedding_dim, h, w): rows first, then columns.

        Without a mask every pixel is real, and the encoding is the same for all images: (1, 2 * embedding_dim, h, w).
        """
        dtype = torch.promote_types(feature_map.dtype, torch.float32)  # float16 would neither hold the sums nor epsilon
        if mask is None:
            height, width = feature_map.shape[-2:]
            rows = torch.arange(1, height + 1, device=feature_map.device, dtype=dtype)[None, :, None].expand(1, -1, width)
            columns = torch.arange(1, width + 1, device=feature_map.device, dtype=dtype)[None, None].expand(1, height, -1)
        else:
            rows = _running_count(mask, dtype)
            columns = _running_count(mask.transpose(1, 2), dtype).transpose(1, 2)
        rows = rows / (rows[:, -1:, :] + _EPSILON) * (2 * math.pi)
        columns = columns / (columns[:, :, -1:] + _EPSILON) * (2 * math.pi)
        channel = torch.arange(self.embedding_dim, device=feature_map.device, dtype=dtype)
        wavelength = _TEMPERATURE ** (2 * torch.div(channel, 2, rounding_mode="floor") / self.embedding_dim)

        def interleave(angle: Tensor) -> Tensor:
            angle = angle[..., None] / wavelength
            return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(3)

        encoding = torch.cat((interleave(rows), interleave(columns)), dim=3)
        return encoding.permute(0, 3, 1, 2).to(feature_map.dtype)


def _running_count(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """How many of (B, n, m) bool are True up to each place of the second axis, itself included: the same as `cumsum`.

    It is a sum over a triangle, because engine builders compile cumulative sums to loops, or get a pair of them wrong. The
    triangle and the mask meet in a product of numbers: WebGPU gets an `and` of two flags wrong.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    before = (places[:, None] >= places).to(dtype)
    return (before[None, :, :, None] * mask.to(dtype)[:, None]).sum(2)


class DetrLearnedPositionEmbedding(nn.Module):
    """A learned vector for each of the first 50 rows and columns; a larger feature map raises an index error."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.row_embeddings = nn.Embedding(LEARNED_POSITIONS, embedding_dim)
        self.column_embeddings = nn.Embedding(LEARNED_POSITIONS, embedding_dim)

    def forward(self, feature_map: Tensor, mask: Tensor | None) -> Tensor:
        """Returns (B, 2 * embedding_dim, h, w), columns first, then rows; the mask is not used."""
        batch, _, height, width = feature_map.shape
        columns = self.column_embeddings(torch.arange(width, device=feature_map.device))
        rows = self.row_embeddings(torch.arange(height, device=feature_map.device))
        columns = columns[None].expand(height, width, -1)
        rows = rows[:, None].expand(height, width, -1)
        encoding = torch.cat((columns, rows), dim=-1).permute(2, 0, 1)
        return encoding[None].expand(batch, -1, -1, -1)


def build_position_encoding(config: DetrConfig) -> nn.Module:
    """The encoding that `config.position_embedding_type` names."""
    kind = DetrSinePositionEmbedding if config.position_embedding_type == "sine" else DetrLearnedPositionEmbedding
    return kind(config.d_model // 2)
