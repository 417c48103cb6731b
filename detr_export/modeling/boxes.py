"""Boxes as tensors: conversions and overlaps, all differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_export.runtimes.errors import InputError


def center_to_corners(boxes: Tensor) -> Tensor:
    """(center_x, center_y, width, height) to (x_min, y_min, x_max, y_max), over the last dimension."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def generalized_box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019) of every pair.

    Args:
        first: (N, 4), (x_min, y_min, x_max, y_max).
        second: (M, 4), likewise.

    Returns:
        (N, M), in [-1, 1].

    Raises:
        InputError: a box has its maximum below its minimum, or is NaN.
    """
    for name, boxes in (("first", first), ("second", second)):
        if not (boxes[:, 2:] >= boxes[:, :2]).all():
            raise InputError(
                f"the {name} boxes are NaN, or a minimum lies above its maximum; expected x_min <= x_max and y_min <= y_max"
            )
    overlap = _area(torch.maximum(first[:, None, :2], second[:, :2]), torch.minimum(first[:, None, 2:], second[:, 2:]))
    union = _area(first[:, :2], first[:, 2:])[:, None] + _area(second[:, :2], second[:, 2:]) - overlap
    hull = _area(torch.minimum(first[:, None, :2], second[:, :2]), torch.maximum(first[:, None, 2:], second[:, 2:]))
    return overlap / union - (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
