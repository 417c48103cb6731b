"""The graph that an engine is built from: an ONNX file as it is, or a checkpoint exported on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detr_export.checkpoint import load_checkpoint
from detr_export.engine_gate import FALLBACKS
from detr_export.inspection import inspect_onnx
from detr_export.onnx_export import SUFFIX, export_onnx
from runtimes.errors import ArtifactError, BackendError


def make_graph(source: str, step: str, folder: Path, progress: Callable[[str], None] = lambda line: None) -> Path:
    """The ONNX file of a step of `FALLBACKS`.

    Args:
        source: an ONNX file or a checkpoint.
        step: "fp16", "fp32-attention", "fp32-transformer" or "fp32".
        folder: where a file may be written.
        progress: called with one line for each stage of an export.

    Raises:
        ArtifactError: an ONNX file is of another precision.
        BackendError: this version makes no such graph.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
    """
    if source.endswith(SUFFIX):
        metadata = inspect_onnx(source).metadata
        precision = None if metadata is None else metadata.precision
        if step == FALLBACKS[0] and precision == "fp32":
            raise ArtifactError(f"{source} is fp32; export its checkpoint with: detr-export onnx --precision fp16")
        if step not in (FALLBACKS[0], FALLBACKS[-1]):
            raise ArtifactError(f"{step} cannot be made from {source}; give the checkpoint")
        return Path(source)
    if step != FALLBACKS[-1]:
        raise BackendError(f"this detr-export makes no {step} graph of a checkpoint; leave --fp16 and --fallback out")
    output = folder / f"{step}{SUFFIX}"
    if not output.exists():
        progress(f"exporting {source}")
        export_onnx(load_checkpoint(source), output, progress=progress)
    return output
