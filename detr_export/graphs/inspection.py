"""What an ONNX file says about itself, and what can be read off its graph when it says nothing.

`onnx` reads all of it. Where `onnx` is not installed, as on a deployed box, ONNX Runtime reads what it gives out: inputs,
outputs and metadata, and not the operators and weights. So nothing heavy is imported at the top of this file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detr_export.runtimes.described import processor_of
from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import require_regular, sha256_of_files
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.mask_head import TASK
from detr_export.runtimes.metadata import UINT8, EndToEnd, Metadata, Quantization
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.session import TensorSpec

if TYPE_CHECKING:
    import onnx


_CLASSES_SHOWN = 10  # of those that a model knows; the rest would hide what stands below


@dataclass(frozen=True)
class Inspection:
    """The answers; None for what only `onnx` reads, where it is not installed."""

    path: str
    size_bytes: int
    sha256: str
    producer: str
    opset: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Metadata | None  # None for a file that detr-export did not make
    parameters: int | None = None  # elements of all initialisers
    operators: dict[str, int] | None = None  # nodes by operator, most frequent first
    external_data: tuple[str, ...] | None = None  # files beside it that hold weights

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Some lines for people."""
        opset = "unknown" if self.opset is None else self.opset
        lines = [
            f"{self.path}  {self.size_bytes / 1e6:.1f} MB, opset {opset}, by {self.producer or 'unknown'}",
            f"  sha256     {self.sha256}",
            *(f"  input      {spec}" for spec in self.inputs),
            *(f"  output     {spec}" for spec in self.outputs),
        ]
        if self.operators is None:
            lines.append("  operators  not read: they need onnx, which is in detr-export[export]")
        else:
            lines += [
                f"  parameters {self.parameters:,}",
                f"  operators  {', '.join(f'{name} {count}' for name, count in self.operators.items())}",
            ]
        lines += [f"  external   {name}" for name in self.external_data or ()]
        if self.metadata is None:
            return "\n".join([*lines, "  metadata   none: detr-export did not make this file"])
        return "\n".join([*lines, *_metadata_lines(self.metadata)])


def _metadata_lines(about: Metadata) -> list[str]:
    ranges = ", ".join(
        f"{name} {low} to {high if high is not None else 'any'}" for name, (low, high) in about.ranges.items()
    )
    processor = processor_of(about)
    size = ", ".join(f"{edge} {pixels}" for edge, pixels in processor.size.items())
    pixels = "torchvision" if isinstance(processor, DetrImageProcessorFast) else "Pillow"
    return [
        f"  task       {about.task}, {len(about.id2label)} classes, {about.precision}",
        f"  classes    {_names(about.id2label)}",
        *([] if about.end_to_end is None else [f"  end to end {_whole(about.end_to_end)}"]),
        *([] if about.mask_head is None else [f"  mask head  in a file of its own, sha256 {about.mask_head}"]),
        *([] if about.quantization is None else [f"  int8       {_int8(about.quantization)}"]),
        f"  images     {size}; pixels of {pixels}",
        f"  values     {_values(about, processor)}",
        f"  ranges     {ranges}",
        f"  source     {about.source.get('name')}, sha256 {about.source.get('sha256')}",
        f"  tools      {', '.join(f'{name} {version}' for name, version in about.tools.items())}",
        f"  parity     {'in the file of its detector' if about.task == TASK else _parity(about.parity or {})}",
    ]


def _values(about: Metadata, processor: DetrImageProcessor) -> str:
    """How pixels of 0 to 255 become what the model computes with."""
    steps = []
    if processor.do_rescale:
        steps.append(f"times {_numbers(processor.rescale_factor)}")
    if processor.do_normalize:
        steps.append(f"minus ({_numbers(processor.image_mean)}), over ({_numbers(processor.image_std)})")
    where = "in the graph" if about.input == UINT8 else "by the processor"
    return f"{', '.join(steps)}, {where}" if steps else "as they are"


def _numbers(value: Any) -> str:
    """One number or several; nothing is a setting that is missing, though its step is on."""
    return "nothing" if value is None else ", ".join(f"{number:.6g}" for number in np.atleast_1d(value))


def _whole(options: EndToEnd) -> str:
    return (
        f"{options.color.upper()} images of any size, resized by {options.resize}, "
        f"to the best {options.top_k} detections in pixels"
    )


def _int8(about: Quantization) -> str:
    scored = "not scored"
    if about.accuracy is not None:
        scores = about.accuracy.get("scores", {})
        changes = about.accuracy.get("difference", {})
        parts = [f"{name} {value:.4f} ({changes.get(name, 0.0):+.4f})" for name, value in scores.items()]
        scored = f"{', '.join(parts)} on {about.accuracy.get('images')} images against the checkpoint"
    return (
        f"scope {about.scope}, the rest {about.float_precision}; {about.method} on {about.images} pictures; "
        f"{len(about.kept_float)} layers of the scope in float; {scored}"
    )


def _parity(found: Mapping[str, Any]) -> str:
    """How far the file is off its checkpoint in float64, and how many noise floors that is where one was measured."""
    differences, ratios = found.get("max_abs_diff", {}), found.get("ratio", {})
    parts = [
        f"{name} {value:.1e}" + (f" ({ratios[name]:.2g} x the noise floor)" if name in ratios else "")
        for name, value in differences.items()
    ]
    end = found.get("end_to_end") or {}
    units = {"pixels": " levels", "boxes": " pixels"}
    parts += [f"end to end {name} {value:.1e}{units.get(name, '')}" for name, value in end.get("max_abs_diff", {}).items()]
    return ", ".join(parts) or "not verified"


def _names(id2label: Mapping[int, str]) -> str:
    """The first names of the classes, and how many more there are."""
    shown = [f"{label} {id2label[label]}" for label in sorted(id2label)[:_CLASSES_SHOWN]]
    more = len(id2label) - len(shown)
    return ", ".join(shown) + (f", and {more} more; --json has them all" if more else "")


def inspect_onnx(path: str | Path) -> Inspection:
    """Reads an ONNX file, also one on the hub (`org/repo/file.onnx`); with `onnx`, without its external data.

    Raises:
        ArtifactError: the file is missing, empty, damaged or no ONNX model.
        BackendError: neither `onnx` nor ONNX Runtime is installed; or huggingface_hub is not, which the hub needs.
    """
    file = onnx_file(path)
    require_regular(file, ArtifactError)
    return _read_with_onnxruntime(file) if importlib.util.find_spec("onnx") is None else _read_with_onnx(file)


def _read_with_onnx(file: Path) -> Inspection:
    from detr_export.graphs.checks import operator_counts
    from detr_export.graphs.editing import opset_of
    from detr_export.graphs.parts import metadata_of
    from detr_export.graphs.reading import load_graph

    model = load_graph(file, weights=False)
    constants = {item.name for item in model.graph.initializer}
    places = {entry.value for item in model.graph.initializer for entry in item.external_data if entry.key == "location"}
    return Inspection(
        path=str(file),
        size_bytes=file.stat().st_size,
        sha256=sha256_of_files([file]),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset=opset_of(model),
        inputs=tuple(_spec(item) for item in model.graph.input if item.name not in constants),
        outputs=tuple(_spec(item) for item in model.graph.output),
        metadata=metadata_of(model, file),
        parameters=sum(_elements(item, file) for item in model.graph.initializer),
        operators=operator_counts(model),
        external_data=tuple(sorted(places)),
    )


def _read_with_onnxruntime(file: Path) -> Inspection:
    from detr_export.runtimes.backends.ort.session import OrtSession

    with OrtSession(file, threads=1, graph_optimization="disabled") as session:
        return Inspection(
            path=str(file),
            size_bytes=file.stat().st_size,
            sha256=sha256_of_files([file]),
            producer=session.runtime.get_modelmeta().producer_name,
            opset=None if session.metadata is None else session.metadata.opset,
            inputs=session.inputs,
            outputs=session.outputs,
            metadata=session.metadata,
        )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    try:
        dtype = tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = "unknown"
    shape = tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def _elements(tensor: onnx.TensorProto, file: Path) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
        if size < 0 or count >= 1 << 63:
            raise ArtifactError(f"{file}: the tensor {shown(tensor.name)} has a size of {size}; expected what fits memory")
    return count
