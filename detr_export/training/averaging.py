"""The exponential moving average of a model's weights, which is often a better model than the last weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """An average that follows a model.

    Its decay rises with the steps, as in TensorFlow's `ExponentialMovingAverage`: (1 + n) / (10 + n), up to the decay that
    was asked for. So it forgets where a short run began. Buffers, such as the statistics of batch norm, are copied.

    Args:
        model: that is trained; the average starts from its weights.
        decay: of the average, below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        @torch.no_grad()
        def take_in(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
            ramp = (1 + int(count)) / (10 + int(count))
            torch._foreach_lerp_(averages, values, 1 - min(decay, ramp))

        self._averaged = AveragedModel(model, multi_avg_fn=take_in)  # its first update copies the model

    def update(self, model: nn.Module) -> None:
        """Takes in the weights after a step."""
        self._averaged.update_parameters(model)

    @property
    def module(self) -> nn.Module:
        """The model with the averaged weights."""
        module: nn.Module = self._averaged.module
        return module

    def state_dict(self) -> dict[str, Tensor]:
        """For a run that goes on."""
        return dict(self._averaged.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state_dict` gave."""
        self._averaged.load_state_dict(state)
