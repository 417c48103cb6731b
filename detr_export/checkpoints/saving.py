"""Writing a checkpoint in the layout of the hub: what `load_checkpoint` and transformers read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import nn

from detr_export.checkpoints.layouts import from_hub_names
from detr_export.config import TRANSFORMERS4, DetrConfig
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.processing.image_processor import CONFIG_NAME as PROCESSOR_NAME
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

SAFETENSORS_NAME = "model.safetensors"


def save_checkpoint(
    config: DetrConfig, model: nn.Module, processor: DetrImageProcessor | None, directory: str | Path, fp16: bool = False
) -> Path:
    """Writes `config.json`, `model.safetensors` and `preprocessor_config.json`, and returns the directory.

    Without a processor, a `preprocessor_config.json` that is there stays, and otherwise it gets the published settings.

    Fields and parameters have the names that they had where the configuration was read, see `DetrConfig.layout`.

    With `fp16`, matrices and kernels are stored as float16, which halves the file; whoever loads it computes in float32.
    Vectors stay float32: they take little space, and a batch norm's variance may be too small for float16.

    Raises:
        OutputError: the directory cannot be written.
    """
    folder = Path(directory)
    _with_float32(config).save_pretrained(folder)
    named = from_hub_names(model.state_dict(), config)
    tensors = {name: value.detach().cpu().contiguous() for name, value in named.items()}
    if fp16:
        tensors = {name: value.half() if value.dim() > 1 else value for name, value in tensors.items()}
    write_atomically(folder / SAFETENSORS_NAME, save(tensors, metadata={"format": "pt"}))  # transformers requires the format
    if processor is not None or not (folder / PROCESSOR_NAME).exists():
        (processor or DetrImageProcessor()).save_pretrained(folder)
    return folder


def _with_float32(config: DetrConfig) -> DetrConfig:
    """The configuration, with what to compute in. Without that, transformers 5 takes the type of the first weight."""
    names = [name for name in ("dtype", "torch_dtype") if name in config.extra]
    name = names[0] if names else "torch_dtype" if config.layout == TRANSFORMERS4 else "dtype"
    return replace(config, extra={**config.extra, name: "float32"})
