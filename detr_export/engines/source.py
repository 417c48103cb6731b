"""The graph that an engine is built from: an ONNX file as it is, or a checkpoint exported on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines.gate import FALLBACKS
from detr_export.graphs.export import DEFAULT_OPSET, SUFFIX, ExportOptions, export_onnx
from detr_export.graphs.inspection import inspect_onnx
from detr_export.runtimes.errors import ArtifactError, BackendError

_EXPORTS: Mapping[str, Mapping[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "fp32-attention": {"precision": "fp16", "keep_fp32": "attention"},
    "fp32-transformer": {"precision": "fp16", "keep_fp32": "transformer"},
    "fp32": {},
}


def make_graph(source: str, step: str, folder: Path, progress: Callable[[str], None] = lambda line: None) -> Path:
    """The ONNX file of a step of `FALLBACKS`.

    Args:
        source: an ONNX file or a checkpoint.
        step: "fp16", "fp32-attention", "fp32-transformer" or "fp32".
        folder: where a file may be written.
        progress: called with one line for each stage of an export.

    Raises:
        ArtifactError: an ONNX file is of another precision.
        VerificationError: the graph itself already disagrees with the checkpoint.
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
    output = folder / f"{step}{SUFFIX}"
    if not output.exists():
        progress(f"exporting {source}, {step}")
        options = ExportOptions(opset=_opset(), **_EXPORTS[step])
        export_onnx(load_checkpoint(source), output, options, progress)
    return output


def _opset() -> int:
    """What the installed TensorRT reads; the usual one where there is none, for ONNX Runtime."""
    try:
        from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
    except BackendError:
        return DEFAULT_OPSET
    return tensorrt_api.generation().export_opset
