"""The golden data of an export, whatever it takes."""

from __future__ import annotations

from pathlib import Path

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.options import ExportOptions
from detr_export.runtimes.metadata import Metadata
from detr_export.verification.comparison import Parity
from detr_export.verification.golden.images import write_image_golden
from detr_export.verification.golden.tensors import write_tensor_golden
from detr_export.verification.golden.writing import WrittenGolden


def write_export_golden(
    folder: str | Path,
    model_name: str,
    checkpoint: Checkpoint,
    options: ExportOptions,
    metadata: Metadata,
    parity: Parity | None,
) -> WrittenGolden:
    """Writes images and detections for an end-to-end file, and tensors for any other; arguments and errors as there."""
    if metadata.end_to_end is not None:
        return write_image_golden(folder, model_name, checkpoint, options, metadata)
    return write_tensor_golden(folder, model_name, checkpoint, options, metadata, parity)
