"""What an ONNX file says about itself, and what can be read off its graph when it says nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from detr_export.graphs.checks import operator_counts
from detr_export.graphs.editing import opset_of
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import sha256_of_files
from detr_export.runtimes.metadata import METADATA_KEY, Metadata, read_metadata
from detr_export.runtimes.session import TensorSpec


@dataclass(frozen=True)
class Inspection:
    """The answers."""

    path: str
    size_bytes: int
    sha256: str
    producer: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int  # elements of all initialisers
    operators: dict[str, int]  # nodes by operator, most frequent first
    external_data: tuple[str, ...]  # files beside it that hold weights
    metadata: Metadata | None  # None for a file that detr-export did not make

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Some lines for people."""
        operators = ", ".join(f"{name} {count}" for name, count in self.operators.items())
        lines = [
            f"{self.path}  {self.size_bytes / 1e6:.1f} MB, opset {self.opset}, by {self.producer or 'unknown'}",
            f"  sha256     {self.sha256}",
            *(f"  input      {spec}" for spec in self.inputs),
            *(f"  output     {spec}" for spec in self.outputs),
            f"  parameters {self.parameters:,}",
            f"  operators  {operators}",
            *(f"  external   {name}" for name in self.external_data),
        ]
        if self.metadata is None:
            return "\n".join([*lines, "  metadata   none: detr-export did not make this file"])
        about = self.metadata
        ranges = ", ".join(
            f"{name} {low} to {high if high is not None else 'any'}" for name, (low, high) in about.ranges.items()
        )
        parity = (about.parity or {}).get("max_abs_diff")
        return "\n".join(
            [
                *lines,
                f"  task       {about.task}, {len(about.id2label)} classes, {about.precision}",
                f"  ranges     {ranges}",
                f"  source     {about.source.get('name')}, sha256 {about.source.get('sha256')}",
                f"  tools      {', '.join(f'{name} {version}' for name, version in about.tools.items())}",
                "  parity     "
                + (", ".join(f"{name} {value:.1e}" for name, value in parity.items()) if parity else "not verified"),
            ]
        )


def inspect_onnx(path: str | Path) -> Inspection:
    """Reads an ONNX file without its external data.

    Raises:
        ArtifactError: the file is missing, empty, damaged or no ONNX model.
    """
    file = Path(path)
    if not file.is_file():
        raise ArtifactError(f"{file} does not exist or is not a file")
    try:
        model = onnx.load(str(file), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError, MemoryError) as error:
        raise ArtifactError(f"{file} is not an ONNX model, or is damaged: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{file} is not an ONNX model: it holds no graph")
    constants = {item.name for item in model.graph.initializer}
    text = next((item.value for item in model.metadata_props if item.key == METADATA_KEY), None)
    return Inspection(
        path=str(file),
        size_bytes=file.stat().st_size,
        sha256=sha256_of_files([file]),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset=opset_of(model),
        inputs=tuple(_spec(item) for item in model.graph.input if item.name not in constants),
        outputs=tuple(_spec(item) for item in model.graph.output),
        parameters=sum(_elements(item) for item in model.graph.initializer),
        operators=operator_counts(model),
        external_data=tuple(
            sorted(
                {entry.value for item in model.graph.initializer for entry in item.external_data if entry.key == "location"}
            )
        ),
        metadata=read_metadata(file, text),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = "unknown"
    shape = tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
