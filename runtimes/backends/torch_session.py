"""PyTorch as a session. It is the reference for every other backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

import numpy as np

from detr_export.runtimes.cpu import require_threads
from detr_export.runtimes.devices import CPU, CUDA, parse_device
from detr_export.runtimes.errors import BackendError, first_line, missing_extra
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session, TensorSpec

try:
    import torch
except ImportError as error:
    raise missing_extra("torch", "export") from error


class TorchSession(Session):
    """A DETR in PyTorch, in eval mode and in the dtype of its weights. Several threads may call `run` at the same time.

    Args:
        model: a module that maps `pixel_values` and `pixel_mask` to tensors by name: `detr_export`'s `DeployedModel`.
        metadata: labels, processor settings and ranges of the checkpoint.
        num_channels: the number of channels of an image.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; PyTorch has this setting for the whole process.

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
        require_threads(threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self._model: Optional[torch.nn.Module] = model.eval().to(self._device)
        self.metadata = metadata
        dtype = next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.float32)
        name_of_dtype = str(dtype).removeprefix("torch.")
        self.inputs = (TensorSpec("pixel_values", name_of_dtype, ("batch", num_channels, "height", "width")),)
        if metadata.pixel_mask:
            self.inputs += (TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),)
        shapes: dict[str, tuple[Union[int, str], ...]] = {
            "logits": ("batch", "queries", len(metadata.id2label) + 1),
            "pred_boxes": ("batch", "queries", 4),
            "pred_masks": ("batch", "queries", "mask_height", "mask_width"),
            "cross_attention": ("batch", "heads", "queries", "feature_height", "feature_width"),
        }
        names = getattr(model, "output_names", ("logits", "pred_boxes"))
        self.outputs = tuple(TensorSpec(name, name_of_dtype, shapes[name]) for name in names)

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        dilation: Optional[bool] = None,
        attentions: bool = False,
        revision: Optional[str] = None,
        processor: Optional[str] = None,
    ) -> TorchSession:
        """Opens a checkpoint: a directory, a `.pth` file or a hub id. `attentions` adds the output `cross_attention`.

        `dilation` and `revision` are those of `load_checkpoint`.

        Raises:
            CheckpointError: it is missing, damaged or not a DETR.
        """
        try:  # the only place in `runtimes` that imports from `detr_export`
            from detr_export.checkpoints.reading import load_checkpoint
            from detr_export.loading import reference_session
        except ImportError as error:
            raise missing_extra(str(error.name), "export") from error

        _checked_device(device)
        return reference_session(
            load_checkpoint(checkpoint, dilation, revision, processor), attentions=attentions, device=device, threads=threads
        )

    @property
    def model(self) -> torch.nn.Module:
        """The module, for what the contract does not cover.

        Raises:
            BackendError: the session is closed.
        """
        if self._model is None:
            raise BackendError("the session is closed")
        return self._model

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._model is None:
            raise BackendError("the session is closed")
        with torch.inference_mode():
            tensors = {
                # torch needs writable memory, so an array that is read-only is copied
                name: torch.from_numpy(np.require(value, requirements=["C", "W"])).to(self._device)
                for name, value in inputs.items()
            }
            try:
                outputs = self._model(**tensors)
                return {spec.name: outputs[spec.name].cpu().numpy() for spec in self.outputs}
            except RuntimeError as error:
                raise BackendError(f"PyTorch failed: {first_line(error)}") from error

    def close(self) -> None:
        self._model = None


def _checked_device(device: str) -> torch.device:
    place = parse_device(device)
    place.require((CPU, CUDA), "PyTorch")
    if place.kind == CUDA and not torch.cuda.is_available():
        raise BackendError("device is 'cuda', but this PyTorch sees no CUDA device; use device 'cpu'")
    if place.kind == CUDA and place.index >= torch.cuda.device_count():
        raise BackendError(f"device is {device!r}, but there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(str(place))
