"""This project's model in PyTorch as people make it faster: compiled, and on a GPU in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.description import describe
from detr_export.graphs.options import ExportOptions
from detr_export.graphs.tracing import input_dims, with_scaling
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.metadata import UINT8
from detr_export.runtimes.session import TensorSpec


class DeployedSession(TorchSession):
    """A checkpoint in PyTorch that may take the images of a file of `--input uint8`, and then scales them on its device.

    Args:
        checkpoint: what `load_checkpoint` takes.
        device: `cuda`, `cuda:N` or `cpu`.
        uint8: whether it takes `pixel_values` uint8 (B, H, W, 3) and `valid_sizes` int64 (B, 2).
    """

    def __init__(self, checkpoint: str, device: str = "cuda", uint8: bool = False) -> None:
        loaded = load_checkpoint(checkpoint)
        model = DeployedModel(load_model(loaded))
        if not uint8:
            super().__init__(model, describe(loaded), loaded.config.num_channels, device)
            return
        scaling = with_scaling(model, loaded.processor)
        super().__init__(scaling, describe(loaded, input=UINT8), loaded.config.num_channels, device)
        shapes = input_dims(loaded.config, ExportOptions(input=UINT8))
        dtypes = {"pixel_values": "uint8", "valid_sizes": "int64"}
        self.inputs = tuple(TensorSpec(name, dtypes[name], shape) for name, shape in shapes.items())


class AutocastSession(DeployedSession):
    """PyTorch in half precision, in the operators in which its autocast thinks that safe. Outputs are float32.

    Args:
        checkpoint, device, uint8: as in `DeployedSession`.
        compiled: with `torch.compile`, for one shape at a time; on a GPU with CUDA graphs.
    """

    def __init__(self, checkpoint: str, device: str = "cuda", compiled: bool = False, uint8: bool = False) -> None:
        super().__init__(checkpoint, device, uint8)
        if compiled:  # after the model has moved to its device
            self._model = torch.compile(self.model, mode="reduce-overhead", dynamic=False)  # type: ignore[assignment]

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
