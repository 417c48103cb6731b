"""The graph that an engine is built from: an ONNX file as it is, or a checkpoint exported on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines.ladder import FIRST, LAST, step_named
from detr_export.graphs.end_to_end.recast import end_to_end_to_fp16
from detr_export.graphs.export import export_onnx
from detr_export.graphs.inspection import inspect_onnx
from detr_export.graphs.options import DEFAULT_OPSET, SUFFIX
from detr_export.graphs.parts import save_model
from detr_export.graphs.reading import load_graph
from detr_export.runtimes.backends.tensorrt.api import TENSORRT, library_named
from detr_export.runtimes.errors import ArtifactError, BackendError
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.progress import SILENT, Progress


def make_graph(
    source: str, step: str, folder: Path, progress: Progress = SILENT, library: str = TENSORRT, input: str = "float"
) -> Path:
    """The ONNX file of a step of the ladder. An end-to-end file in fp32 is cast; others have the precision that they have.

    Args:
        source: an ONNX file or a checkpoint.
        step: the step's name: "fp16", "fp32-attention", "fp32-transformer" or "fp32".
        folder: where a file may be written.
        progress: is told each stage of an export.
        library: which one builds the engine, `TENSORRT` or `TENSORRT_RTX`.
        input: of an export, as in `ExportOptions`.

    Raises:
        ArtifactError: an ONNX file is of another precision.
        VerificationError: the graph itself already disagrees with the checkpoint.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
    """
    output = folder / f"{step}{SUFFIX}"
    if source.endswith(SUFFIX):
        metadata = inspect_onnx(source).metadata
        if step != LAST.name and metadata is not None and metadata.precision == "fp32" and metadata.end_to_end is not None:
            if not output.exists():
                progress.stage(f"casting {source}, {step}")
                _cast_end_to_end(onnx_file(source), output, metadata, step)
            return output
        if step == FIRST.name and metadata is not None and metadata.precision == "fp32":
            raise ArtifactError(f"{source} is fp32; export its checkpoint with: detr-export onnx --precision fp16")
        if step not in (FIRST.name, LAST.name):
            raise ArtifactError(f"{step} cannot be made from {source}; give the checkpoint")
        return onnx_file(source)
    if not output.exists():
        progress.stage(f"exporting {source}, {step}")
        options = replace(step_named(step).options, opset=_opset(library), input=input)
        export_onnx(load_checkpoint(source), output, options, progress)
    return output


def _cast_end_to_end(source: Path, output: Path, metadata: Metadata, step: str) -> None:
    """Writes the fp16 form of an end-to-end file. Nothing compared it with its checkpoint."""
    model = end_to_end_to_fp16(load_graph(source), metadata, step_named(step).options.keep_fp32)
    about = replace(metadata, precision="fp16", parity=None)
    save_model(model, about, output)


def _opset(library: str) -> int:
    """The opset that the installed library reads; without it the default one, for ONNX Runtime."""
    try:
        return library_named(library).generation.export_opset
    except BackendError:
        return DEFAULT_OPSET
