"""Reads what a file says about itself, for whoever opens it: the document, and in it the settings of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict


def read_metadata(file: Path, text: Optional[str]) -> Optional[Metadata]:
    """Reads the document that was found in a file, None if there was none. Errors name the file.

    Raises:
        ArtifactError: as `Metadata.from_json` and `processor_of`.
    """
    if text is None:
        return None
    try:
        metadata = Metadata.from_json(text)
        processor_of(metadata)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from error
    return metadata


def processor_of(metadata: Metadata) -> DetrImageProcessor:
    """The processor that prepares images for a model.

    Raises:
        ArtifactError: its settings are not usable.
    """
    try:
        return processor_from_dict(metadata.processor)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"the file's image settings are not usable: {error}; export it again") from error
