"""Reads ONNX files with `onnx`, also those of strangers. What is wrong with one is an `ArtifactError` that names it."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from detr_export.runtimes.errors import ArtifactError, first_line
from detr_export.runtimes.external_data import require_external_data
from detr_export.runtimes.files import require_regular

_ERRORS = (DecodeError, onnx.checker.ValidationError, ValueError, OSError, MemoryError, RecursionError)
_MOST_BYTES = 2**31 - 1  # protobuf reads no larger message


def load_graph(file: str | Path, weights: bool = True) -> onnx.ModelProto:
    """The model in an ONNX file.

    Args:
        file: its path.
        weights: whether to read those that lie in other files, too.

    Raises:
        ArtifactError: the file is missing, no regular file, too large for protobuf, damaged or no ONNX model; or with
            `weights`, as in `require_external_data`.
    """
    path = Path(file)
    require_regular(path, ArtifactError)
    if path.stat().st_size > _MOST_BYTES:
        raise ArtifactError(
            f"{path} has {path.stat().st_size} bytes, and protobuf reads at most {_MOST_BYTES}; expected a file that keeps "
            "its weights in another one"
        )
    if weights:
        require_external_data(path, "onnx")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=weights)
    except _ERRORS as error:
        raise ArtifactError(f"{path} is not an ONNX model, or is damaged: {first_line(error)}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX model: it holds no graph")
    return model
