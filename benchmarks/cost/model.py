"""What a model costs on paper: multiply-accumulates and bytes moved, counted in its graph at a given input size.

Why: a latency says how long a machine took, not whether that is good. With the work known, a latency becomes a rate
(GFLOP/s), and the rate a share of what the machine can do (`machine_peak`): how far a file is from the limit.

How: the inputs get their sizes, and onnxscript's constant folding computes every shape that follows from them, node by node.
(ONNX's own inference stops at sizes that are divided and cast on the way, as those of DETR's masks are.) Nothing is run.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from detr_export.benchmarks.cost.parts import PARTS, parts_of
from detr_export.graphs.parts import metadata_of
from detr_export.graphs.reading import load_graph
from detr_export.runtimes.errors import ArtifactError, InputError, first_line, missing_extra
from detr_export.runtimes.mask_head import require_mask_head, size_of_dimension

try:
    import onnx_ir as ir
    from onnxscript.optimizer import fold_constants
except ImportError as error:
    raise missing_extra(str(error.name), "export") from error

_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Multiplications that are not counted: a total without them would be wrong and look right.
_REFUSED = (
    *("Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv"),
    *("QLinearMatMul", "RNN", "If", "Loop", "Scan"),
)
_SHAPE_VALUES = 64  # numbers in a tensor that may be folded: those of a shape, or the powers in the rule for sizes
_VIEWS = ("Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze")  # no runtime copies for these


@dataclass(frozen=True)
class Cost:
    """The work of one run on one batch."""

    gmac: float  # 1e9 multiply-accumulates, of Conv, ConvTranspose, Gemm and MatMul; one is two FLOP
    moved_bytes: int  # every node's inputs, weights among them, and outputs; more than a runtime that fuses nodes moves
    parts: Mapping[str, float]  # gmac by part of the model, of `parts.PARTS`
    operators: Mapping[str, float]  # gmac by operator, most first

    def plus(self, other: Cost) -> Cost:
        """The work of both."""
        operators = Counter(self.operators)
        operators.update(other.operators)
        return Cost(
            self.gmac + other.gmac,
            self.moved_bytes + other.moved_bytes,
            {part: gmac + other.parts[part] for part, gmac in self.parts.items()},
            dict(operators.most_common()),
        )

    def gflop_per_s(self, session_ms: float) -> float:
        """The rate at which a run of that many milliseconds did the work, in 1e9 FLOP per second."""
        return 2 * self.gmac / (session_ms / 1e3)


def model_cost(path: Path, height: int, width: int, batch: int, queries: int | None = None) -> Cost:
    """Counts the work of an ONNX file, and of its mask head where it has one.

    Args:
        path: a DETR, simplified or not. Files of other exporters count as well, with more of them under "other".
        height, width: of the batch, in pixels.
        batch: images.
        queries: of each image, whose masks are drawn by a mask head in a file of its own; all when None.

    Raises:
        ArtifactError: the file is missing, damaged, holds operators whose multiplications are not counted, or its sizes
            cannot be worked out.
        InputError: a size is not positive, or the file is for another one.
    """
    sizes = {"batch": batch, "height": height, "width": width}
    proto = _loaded(path, sizes)
    cost = _graph_cost(proto, path, sizes)
    metadata = metadata_of(proto, path)
    if metadata is None or metadata.mask_head is None or queries == 0:
        return cost
    beside = require_mask_head(path, metadata.mask_head)
    if queries is not None:
        sizes["queries"] = queries
    drawing = _loaded(beside, sizes)
    if queries is None:
        described = metadata_of(drawing, beside)
        assert described is not None  # its digest is the one that the detector names
        sizes["queries"] = described.ranges["queries"][1] or 0
    return cost.plus(_graph_cost(drawing, beside, sizes))


def _graph_cost(proto: onnx.ModelProto, path: Path, sizes: Mapping[str, int]) -> Cost:
    """The work of one graph, which is changed; `path` is for messages."""
    graph, parts = _sized_graph(proto, path, sizes)
    by_part, by_operator, moved_bytes = dict.fromkeys(PARTS, 0), Counter[str](), 0
    for node in graph:
        if node.op_type in _REFUSED or node.domain not in ("", "ai.onnx"):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ArtifactError(
                f"{path} holds {name}, whose cost is not known; count the file that detr-export onnx wrote, at opset 18"
            )
        if node.op_type not in _VIEWS:
            moved_bytes += sum(_bytes(value, path) for value in (*node.inputs, *node.outputs) if value is not None)
        if node.op_type in _COUNTED:
            macs = _macs(node, path)
            by_part[parts.get(str(node.outputs[0].name), "other")] += macs
            by_operator[node.op_type] += macs
    return Cost(
        gmac=by_operator.total() / 1e9,
        moved_bytes=moved_bytes,
        parts={part: macs / 1e9 for part, macs in by_part.items()},
        operators={operator: macs / 1e9 for operator, macs in by_operator.most_common()},
    )


def _loaded(path: Path, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The file's graph. Raises InputError for a size that is none, too."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}; expected at least 1")
    return load_graph(path)


def _sized_graph(proto: onnx.ModelProto, path: Path, sizes: Mapping[str, int]) -> tuple[ir.Graph, dict[str, str]]:
    """The graph with every shape a number, and the part that computes each tensor."""
    # Give the inputs their sizes, and forget all shapes that hold for other sizes.
    for value in proto.graph.input:
        _give_sizes(value, sizes)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    parts = parts_of(proto.graph)

    # Compute every shape that follows.
    try:
        model = ir.from_proto(proto)
        with _quiet("onnxscript"):
            fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=_SHAPE_VALUES,
                output_size_limit=_SHAPE_VALUES,
                # Work on constants alone (the first self-attention of the decoder is such) is still work for a runtime.
                # An end-to-end file counts the pixels of a side in a Range, whose length is the size that is wanted.
                should_fold=lambda node: False if node.op_type in _COUNTED else True if node.op_type == "Range" else None,
            )
    except Exception as error:  # what fails inside is of any class
        raise ArtifactError(f"the sizes inside {path} cannot be worked out: {first_line(error)}") from error
    return model.graph, parts


def _give_sizes(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> None:
    """Writes the sizes into an input, by the names or, where it has none, the order of its dimensions."""
    dimensions = value.type.tensor_type.shape.dim
    if "queries" in sizes:  # a mask head, whose dimensions have names
        for dimension in dimensions:
            size = size_of_dimension(dimension.dim_param, sizes)
            if size is not None:
                dimension.dim_value = size
        return
    by_order = {4: ("batch", "", "height", "width"), 3: ("batch", "height", "width"), 2: ("batch", "")}.get(
        len(dimensions), ()
    )
    if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:  # the channels of such images come last
        by_order = ("batch", "height", "width", "")
    for dimension, name in zip(dimensions, by_order, strict=False):
        if name and dimension.HasField("dim_value") and dimension.dim_value != sizes[name]:
            raise InputError(f"{name} is {sizes[name]}; this file takes {dimension.dim_value} alone")
        if name:
            dimension.dim_value = sizes[name]


def _macs(node: ir.Node, path: Path) -> int:
    """Multiply-accumulates: those of one element of the output, or for ConvTranspose of the input, times the elements."""
    first, second = node.inputs[0], node.inputs[1]
    each = _shape(first, path)[-1]  # MatMul: the length of a row
    if node.op_type in ("Conv", "ConvTranspose"):
        each = math.prod(_shape(second, path)[1:])  # channels of a group times the kernel's elements
    elif node.op_type == "Gemm":
        transposed = node.attributes.get_int("transA", 0)
        each = _shape(first, path)[0 if transposed else 1]
    return each * math.prod(_shape(first if node.op_type == "ConvTranspose" else node.outputs[0], path))


def _bytes(value: ir.Value, path: Path) -> int:
    if value.shape is None and not value.uses() and not value.is_graph_output():
        return 0  # an optional output that nobody takes
    if value.dtype is None:
        raise ArtifactError(f"the type of {value.name} in {path} cannot be worked out; export it again: detr-export onnx")
    return math.ceil(math.prod(_shape(value, path)) * value.dtype.bitwidth / 8)


def _shape(value: ir.Value | None, path: Path) -> tuple[int, ...]:
    sizes = None if value is None or value.shape is None else tuple(value.shape)
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        name = "an input" if value is None else value.name
        raise ArtifactError(f"the size of {name} in {path} cannot be worked out; export it again: detr-export onnx")
    return tuple(size for size in sizes if isinstance(size, int))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Holds back a library's notes about what it leaves as it is."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
