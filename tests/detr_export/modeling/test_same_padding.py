"""`SamePaddingConv2d` against timm's `Conv2dSame`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detr_export.modeling.same_padding import SamePaddingConv2d, trace_same_padding


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 2), (3, 2, 2), (1, 2, 1), (2, 3, 1)]
)
@pytest.mark.parametrize("size", [(8, 9), (10, 11), (33, 64)], ids=str)
@torch.no_grad()
def test_same_numbers_as_timm(kernel: int, stride: int, dilation: int, size: tuple[int, int]) -> None:
    from timm.layers import Conv2dSame

    theirs = nn.Sequential(Conv2dSame(4, 6, kernel, stride, dilation=dilation, groups=2))
    ours = copy.deepcopy(theirs)
    trace_same_padding(ours)
    assert type(ours[0]) is SamePaddingConv2d
    images = torch.randn(2, 4, *size)
    assert torch.equal(ours(images), theirs(images))
    assert ours(images).shape[2:] == tuple(-(-side // stride) for side in size)


def test_other_convolutions_stay() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 3))
    trace_same_padding(module)
    assert type(module[0]) is nn.Conv2d
