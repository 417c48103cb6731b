"""Fetching a checkpoint from the Hugging Face hub, through its cache and in its offline mode."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from detr_export.config import CONFIG_NAME
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.hub import hub_errors, require_size_on_hub, sizes_on_hub
from detr_export.runtimes.processing.image_processor import CONFIG_NAME as PROCESSOR_NAME

# The first of these that exists holds the weights.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# A name with one of these endings was meant as a file. The hub is not asked: it takes long, and its answer misleads.
_FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".json")


def download(repository: str, revision: str | None = None) -> Path:
    """Fetches a checkpoint's files and returns the directory that they lie in.

    Follows the environment variables `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN`.

    Raises:
        CheckpointError: the id is invalid, or the repository is not there, needs a login, lacks a file or cannot be reached.
        BackendError: huggingface_hub is not installed.
    """
    if Path(repository).suffix in _FILE_SUFFIXES:
        raise CheckpointError(f"{repository} does not exist; expected a directory, a .pth file or a hub id")
    with hub_errors(repository, CONFIG_NAME, revision, CheckpointError):
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError

        _require_sizes(repository, sizes_on_hub(repository, revision))
        directory = Path(hf_hub_download(repository, CONFIG_NAME, revision=revision)).parent
        for name in WEIGHT_FILES:
            try:
                file = hf_hub_download(repository, name, revision=revision)
            except EntryNotFoundError:  # offline it is the subclass LocalEntryNotFoundError
                continue
            if name.endswith(".index.json"):
                snapshot_download(repository, revision=revision, allow_patterns=[_shards(name)])
            directory = Path(file).parent
            break
        with contextlib.suppress(EntryNotFoundError):  # without the file, the defaults of facebook/detr-resnet-50 hold
            hf_hub_download(repository, PROCESSOR_NAME, revision=revision)
    return directory


def _shards(index: str) -> str:
    """The pattern of the files that an index names."""
    return "model-*.safetensors" if index.startswith("model.") else "pytorch_model-*.bin"


def _require_sizes(repository: str, sizes: Mapping[str, int]) -> None:
    """Refuses files above the limits: each that may be fetched, and all parts of the weights together."""
    for name in (CONFIG_NAME, PROCESSOR_NAME, *WEIGHT_FILES):
        require_size_on_hub(repository, name, sizes.get(name, 0), CheckpointError)
        if name.endswith(".index.json"):
            parts = sum(size for part, size in sizes.items() if fnmatch(part, _shards(name)))
            require_size_on_hub(repository, _shards(name), parts, CheckpointError)
