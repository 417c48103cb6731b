"""PyTorch behind the session contract: the reference that every other backend is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import numpy as np

from runtimes.errors import BackendError, missing_extra
from runtimes.metadata import Metadata
from runtimes.session import Session, TensorSpec

try:
    import torch
except ImportError as error:
    raise missing_extra("torch", "export") from error


class TorchSession(Session):
    """A DETR in PyTorch, in eval mode and float32. `run` may be called from several threads at once.

    Args:
        model: a module that maps `pixel_values` and `pixel_mask` to an output with `logits` and `pred_boxes`.
        metadata: labels, processor settings and ranges of the checkpoint.
        num_channels: channels of the images.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of the CPU; this is PyTorch's setting for the whole process.

    Raises:
        BackendError: the device is unknown or not available.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        metadata: Metadata,
        num_channels: int = 3,
        device: str = "cpu",
        threads: Optional[int] = None,
    ) -> None:
        self._device = _checked_device(device)
        if threads is not None:
            if threads < 1:
                raise BackendError(f"threads is {threads}; expected at least 1")
            torch.set_num_threads(threads)
        self._model: Optional[torch.nn.Module] = model.eval().to(self._device)
        self.metadata = metadata
        self.inputs = (TensorSpec("pixel_values", "float32", ("batch", num_channels, "height", "width")),)
        if metadata.pixel_mask:
            self.inputs += (TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),)
        self.outputs = (
            TensorSpec("logits", "float32", ("batch", "queries", len(metadata.id2label) + 1)),
            TensorSpec("pred_boxes", "float32", ("batch", "queries", 4)),
        )

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        dilation: Optional[bool] = None,
    ) -> TorchSession:
        """Opens a checkpoint: a directory, a `.pth` file or a hub id.

        Raises:
            CheckpointError: it is missing, damaged or not a DETR.
        """
        try:  # the one place that looks up the rooms
            from detr_export.checkpoint import load_checkpoint, load_model
            from detr_export.description import describe
        except ImportError as error:
            raise missing_extra(str(error.name), "export") from error

        _checked_device(device)
        loaded = load_checkpoint(checkpoint, dilation)
        return cls(load_model(loaded), describe(loaded), loaded.config.num_channels, device, threads)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._model is None:
            raise BackendError("the session is closed")
        with torch.inference_mode():
            tensors = {
                # torch wants writable memory; what cannot be written to is copied
                name: torch.from_numpy(np.require(value, requirements=["C", "W"])).to(self._device)
                for name, value in inputs.items()
            }
            try:
                outputs = self._model(**tensors)
                return {spec.name: outputs[spec.name].cpu().numpy() for spec in self.outputs}
            except RuntimeError as error:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise BackendError(f"PyTorch failed: {reason}") from error

    def close(self) -> None:
        self._model = None


def _checked_device(device: str) -> torch.device:
    kind, _, index = device.partition(":")
    if device not in ("cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise BackendError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendError("device is 'cuda', but this PyTorch sees no CUDA device; use device 'cpu'")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device is {device!r}, but there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(device)
