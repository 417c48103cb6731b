"""What a training step computes in: float32, or mixed with half precision on a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from detr_export.runtimes.errors import BackendError


class Precision:
    """How gradients are computed and applied.

    In mixed precision the model computes in bfloat16, or in float16 with scaled gradients on a GPU that lacks it. The
    weights and the losses stay float32.

    Args:
        device: of the model.
        mixed: whether half precision takes part.

    Raises:
        BackendError: mixed precision is asked for on a device without it.
    """

    def __init__(self, device: torch.device, mixed: bool) -> None:
        if mixed and device.type != "cuda":
            raise BackendError(
                f"mixed precision needs a GPU, and the device is {device}; leave --amp out, or give --device cuda"
            )
        self._setup(device.type, mixed, torch.bfloat16 if not mixed or torch.cuda.is_bf16_supported() else torch.float16)

    def _setup(self, device: str, mixed: bool, dtype: torch.dtype) -> None:
        self._device, self._mixed, self._dtype = device, mixed, dtype
        self._scaler = torch.amp.GradScaler(device, enabled=mixed and dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """Where the model runs in."""
        return torch.autocast(self._device, self._dtype, enabled=self._mixed)

    def backward(self, loss: Tensor) -> None:
        """Adds to the gradients."""
        self._scaler.scale(loss).backward()

    def apply(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip: float) -> float:
        """Clips the gradients to a norm, and makes the optimiser's step. Returns their norm before that.

        A step in float16 whose gradients overflow changes no weights; the next one is scaled less.
        """
        self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """For a run that goes on."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        if state:
            self._scaler.load_state_dict(state)
