"""This project's model in PyTorch as people make it faster: compiled, and on a GPU in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.description import describe
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel
from detr_export.runtimes.backends.torch_session import TorchSession


class AutocastSession(TorchSession):
    """PyTorch in half precision, in the operators in which its autocast thinks that safe. Outputs are float32.

    Args:
        checkpoint: what `load_checkpoint` takes.
        device: `cuda`, `cuda:N` or `cpu`.
        compiled: with `torch.compile`, for one shape at a time; on a GPU with CUDA graphs.
    """

    def __init__(self, checkpoint: str, device: str = "cuda", compiled: bool = False) -> None:
        loaded = load_checkpoint(checkpoint)
        model: Any = DeployedModel(load_model(loaded))
        super().__init__(model, describe(loaded), loaded.config.num_channels, device)
        if compiled:  # after the model has moved to its device
            self._model = torch.compile(model, mode="reduce-overhead", dynamic=False)  # type: ignore[assignment]

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.autocast(self._device.type, torch.float16):
            outputs = super()._run(inputs)
        return {name: array.astype(np.float32, copy=False) for name, array in outputs.items()}


def open_compiled(checkpoint: str, threads: int) -> TorchSession:
    """`torch.compile` of a checkpoint on the CPU, for one shape at a time."""
    loaded = load_checkpoint(checkpoint)
    model: Any = torch.compile(DeployedModel(load_model(loaded)).eval(), dynamic=False)
    return TorchSession(model, describe(loaded), loaded.config.num_channels, threads=threads)


def convolutions_use_tf32() -> bool:
    """Whether float32 convolutions on the first GPU are computed in TF32, which is PyTorch's default where the GPU can."""
    return torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability()[0] >= 8
