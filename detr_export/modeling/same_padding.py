"""Convolutions that pad by the image's size, as TensorFlow does (timm's `tf_*` models), in a form that can be traced.

timm's own `Conv2dSame` computes the padding in floating point. With sizes that are free, torch.export does not come to an
end on it. This has the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SamePaddingConv2d(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) rows and columns; an odd pixel of padding goes to the end."""

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self._padding_of(x.shape[2], 0)
        left, right = self._padding_of(x.shape[3], 1)
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _padding_of(self, size: int, axis: int) -> tuple[int, int]:
        stride, reach = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        steps = (size - 1) // stride  # of positive numbers only: ONNX divides towards zero
        total = steps * stride + reach - size
        if reach < stride:  # then it may be negative
            total = torch.sym_max(total, 0)
        return total // 2, total - total // 2


def trace_same_padding(module: nn.Module) -> None:
    """Turns every `Conv2dSame` of timm below `module` into a `SamePaddingConv2d`, which keeps its weights."""
    for child in module.modules():
        if type(child).__name__ == "Conv2dSame":
            child.__class__ = SamePaddingConv2d
