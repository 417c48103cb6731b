"""Fetching a checkpoint from the Hugging Face hub, through its cache and in its offline mode."""

from __future__ import annotations

import contextlib
from pathlib import Path

from detr_export.config import CONFIG_NAME
from detr_export.runtimes.errors import CheckpointError, missing_extra
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
    """
    if Path(repository).suffix in _FILE_SUFFIXES:
        raise CheckpointError(f"{repository} does not exist; expected a directory, a .pth file or a hub id")
    try:
        from huggingface_hub import hf_hub_download, logging, snapshot_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise missing_extra("huggingface_hub", "export") from None

    logging.set_verbosity_error()  # it warns of each retry; the outcome is reported below
    try:
        directory = Path(hf_hub_download(repository, CONFIG_NAME, revision=revision)).parent
        for name in WEIGHT_FILES:
            try:
                file = hf_hub_download(repository, name, revision=revision)
            except EntryNotFoundError:  # offline it is the subclass LocalEntryNotFoundError
                continue
            if name.endswith(".index.json"):
                pattern = "model-*.safetensors" if name.startswith("model.") else "pytorch_model-*.bin"
                snapshot_download(repository, revision=revision, allow_patterns=[pattern])
            directory = Path(file).parent
            break
        with contextlib.suppress(EntryNotFoundError):  # without the file, the defaults of facebook/detr-resnet-50 hold
            hf_hub_download(repository, PROCESSOR_NAME, revision=revision)
    except HFValidationError:
        raise CheckpointError(
            f"{repository} is neither an existing path nor a hub id such as facebook/detr-resnet-50"
        ) from None
    except GatedRepoError:
        raise CheckpointError(f"{repository} needs a login; run: hf auth login") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{repository} is neither an existing path nor a repository on the hub") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{repository} is neither an existing path nor in the hub's cache, and the hub could not be reached"
        ) from None
    except EntryNotFoundError:
        raise CheckpointError(f"{repository} on the hub has no {CONFIG_NAME}") from None
    except OSError as error:
        raise CheckpointError(f"{repository} could not be fetched from the hub: {error}") from error
    return directory
