"""Writing a checkpoint in the layout of the hub: what `load_checkpoint` and transformers read."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import nn

from detr_export.config import DetrConfig
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

SAFETENSORS_NAME = "model.safetensors"


def save_checkpoint(
    config: DetrConfig, model: nn.Module, processor: DetrImageProcessor, directory: str | Path, fp16: bool = False
) -> Path:
    """Writes `config.json`, `model.safetensors` and `preprocessor_config.json`, and returns the directory.

    With `fp16`, matrices and kernels are stored as float16, which halves the file; whoever loads it computes in float32.
    Vectors stay float32: they take little space, and a batch norm's variance may be too small for float16.

    Raises:
        OutputError: the directory cannot be written.
    """
    folder = Path(directory)
    config.save_pretrained(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if fp16:
        tensors = {name: value.half() if value.dim() > 1 else value for name, value in tensors.items()}
    write_atomically(folder / SAFETENSORS_NAME, save(tensors, metadata={"format": "pt"}))  # transformers requires the format
    processor.save_pretrained(folder)
    return folder
