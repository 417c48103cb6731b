"""Which image processor a checkpoint directory was made for: Pillow's pixels or torchvision's. They differ by an 8-bit step.

transformers 4 names the class in `preprocessor_config.json`. Since about 5.4, transformers 5 writes `DetrImageProcessor` for
both classes, and `AutoImageProcessor` opens the file with torchvision's. So a file of that version is taken as it would be
there, and `--processor` decides otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

from detr_export.checkpoints.hub import PROCESSOR_NAME
from detr_export.config import DetrConfig
from detr_export.runtimes.documents import read_document
from detr_export.runtimes.errors import CheckpointError, DetrError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast, processor_from_dict

PIL, TORCHVISION = "pil", "torchvision"
_CLASSES = {PIL: DetrImageProcessor, TORCHVISION: DetrImageProcessorFast}
_NAMED = {DetrImageProcessorFast.__name__: TORCHVISION}
_SAME_NAME = (DetrImageProcessor.__name__, None)  # None: there is no file, or it names no class


def read_processor(directory: Path, config: DetrConfig, backend: str | None = None) -> DetrImageProcessor:
    """Reads `preprocessor_config.json`; without that file, the settings are those of facebook/detr-resnet-50.

    Args:
        directory: of the checkpoint.
        config: its configuration, which says which version of transformers wrote it.
        backend: `pil` or `torchvision`; None takes the one that the files name, or that transformers would take.

    Raises:
        CheckpointError: the file is damaged, belongs to another processor, or has an invalid option.
    """
    file = directory / PROCESSOR_NAME
    try:
        exists = os.path.lexists(file)  # a link that leads nowhere is no missing file
        settings = DetrImageProcessor.from_pretrained(directory).to_dict() if exists else DetrImageProcessor().to_dict()
        written = read_document(file, CheckpointError) if exists else {}
        kind = _CLASSES[backend or _backend(written, config)]
        return processor_from_dict({**settings, "image_processor_type": kind.__name__})
    except (DetrError, ValueError) as error:
        raise CheckpointError(f"{file} is not usable: {error}") from error


def require_backend(backend: str | None) -> None:
    """Refuses what is neither `pil` nor `torchvision`.

    Raises:
        CheckpointError: it is something else.
    """
    if backend is not None and backend not in _CLASSES:
        raise CheckpointError(f"processor is {backend!r}; expected {' or '.join(_CLASSES)}")


def _backend(written: dict[str, object], config: DetrConfig) -> str:
    name = written.get("image_processor_type", written.get("feature_extractor_type"))
    # Up to about 5.3 the name still meant Pillow's class, and that class wrote its pad_size, even when there was none.
    if name in _SAME_NAME and "pad_size" not in written and _is_of_transformers_5(config):
        return TORCHVISION
    return _NAMED.get(str(name), PIL)


def _is_of_transformers_5(config: DetrConfig) -> bool:
    major = str(config.extra.get("transformers_version", "")).partition(".")[0]
    return major.isascii() and major.isdigit() and len(major) < 10 and int(major) >= 5
