"""A strongly typed fp16 graph from an fp32 one: half the file, and what TensorRT builds its fast engines from.

Which nodes stay fp32 is in `islands`. The casting of the others is onnxruntime's `convert_float_to_float16`. Alone it is
not enough. It rounds to fp16 between the nodes of one island, where an epsilon of 1e-6 and the mask's minimum live;
`_join_islands` takes those casts out. It also raises tiny constants to the smallest number that fp16 has; here they become
zero beforehand (`_settle_constants`).
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import detr_export.runtimes.backends.ort.telemetry  # noqa: F401  # before a library imports onnxruntime
from detr_export.graphs.editing import replace_nodes, sort_nodes
from detr_export.graphs.fp16 import LARGEST, SMALLEST
from detr_export.graphs.fp16.islands import PRODUCTS, box_nodes, fp32_nodes, kept_nodes
from detr_export.runtimes.errors import ArtifactError, first_line, missing_extra


@dataclass(frozen=True)
class Fp16Weights:
    """What became of an fp32 model's constants."""

    fp16: int  # elements stored as float16
    fp32: int  # elements left as float32: the constants of the islands
    flushed: int  # elements among those in fp16 that are too small for its normal numbers (6.1e-5) and became 0

    @classmethod
    def total(cls, several: Iterable[Fp16Weights]) -> Fp16Weights:
        """Those of several graphs together."""
        found = list(several)
        return cls(*(sum(getattr(item, field.name) for item in found) for field in fields(cls)))

    def summary(self) -> str:
        """For people."""
        share = self.fp16 / max(1, self.fp16 + self.fp32)
        return f"{share:.2%} of the constants are fp16; {self.flushed} of them were too small for fp16 and are now 0"


def to_fp16(
    model: onnx.ModelProto, keep_io: bool = True, keep_fp32: str | None = None
) -> tuple[onnx.ModelProto, Fp16Weights]:
    """Returns a typed mixed-precision copy of a simplified fp32 model.

    Args:
        model: fp32, batch norm folded into its convolutions, nodes in topological order.
        keep_io: inputs and outputs stay fp32; otherwise those become fp16.
        keep_fp32: one of `islands.KEPT`, which stays fp32 as well.

    Raises:
        ArtifactError: a weight is beyond fp16's range, or the typed graph is not valid.
        BackendError: onnxruntime, whose converter this uses, is not installed.
    """
    # Cast all but the islands, without rounding inside of them.
    typed = copy.deepcopy(model)
    _name_nodes(typed.graph)
    fp32 = fp32_nodes(typed.graph, keep_fp32)
    flushed = _settle_constants(typed.graph, fp32)
    typed = _converted(typed, sorted(fp32), keep_io)
    _join_islands(typed.graph)
    sort_nodes(typed.graph)  # the converter puts its casts last

    # Check the result, and count what became of the constants.
    try:
        onnx.checker.check_model(typed, full_check=True)
    except Exception as error:  # the checker and shape inference have an error class each
        raise ArtifactError(f"the fp16 graph is not valid ONNX: {first_line(error)}") from error
    check_fp16(typed, keep_fp32)
    sizes = Counter({TensorProto.FLOAT16: 0, TensorProto.FLOAT: 0})
    for tensor in typed.graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    return typed, Fp16Weights(sizes[TensorProto.FLOAT16], sizes[TensorProto.FLOAT], flushed)


def check_fp16(model: onnx.ModelProto, keep_fp32: str | None = None) -> None:
    """Checks that a graph is what `precision: fp16` promises, but for what `keep_fp32` names.

    ONNX Runtime's CPU computes fp16 nodes in fp32, so its results cannot show it; the types in the graph can.

    Raises:
        ArtifactError: a product other than the box head's last layer has fp32 weights, or an fp16 constant is subnormal or
            not finite.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    allowed = box_nodes(model.graph) | kept_nodes(model.graph, keep_fp32)
    for node in model.graph.node:
        for name in node.input if node.op_type in PRODUCTS and node.name not in allowed else ():
            if name in constants and constants[name].data_type != TensorProto.FLOAT16:
                raise ArtifactError(f"the weight {name!r} of {node.op_type} {node.name!r} is not fp16")
    for tensor in constants.values():
        if tensor.data_type == TensorProto.FLOAT16:
            size = np.abs(numpy_helper.to_array(tensor).astype(np.float32))
            if not np.isfinite(size).all() or ((size > 0) & (size < SMALLEST)).any():
                raise ArtifactError(f"the fp16 constant {tensor.name!r} holds values that are not finite or subnormal")


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Gives every node a name of its own: the converter tells nodes apart by name."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_of_{len(graph.node)}"
        taken.add(node.name)


def _settle_constants(graph: onnx.GraphProto, fp32: set[str]) -> int:
    """Makes fp16 hold the constants of fp16 nodes; islands get an fp32 copy of the constants that they share with those.

    A weight below 6.1e-5 changes a product by less than the rounding of its other weights does, and GPUs may flush
    subnormal numbers on their own, so it becomes 0 here.

    Returns:
        How many elements became 0.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    shared = {name for node in graph.node if node.name not in fp32 for name in node.input if name in constants}

    # Copies for the islands.
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.name in fp32 and name in shared:
                node.input[index] = f"{name}_fp32"
                if node.input[index] not in constants:
                    twin = graph.initializer.add()
                    twin.CopyFrom(constants[name])
                    twin.name = node.input[index]
                    constants[twin.name] = twin

    # What is too small becomes 0; what is too large is an error.
    flushed = 0
    for name in sorted(shared):
        array = numpy_helper.to_array(constants[name])
        largest = float(np.abs(array).max(initial=0))
        if not largest <= LARGEST:
            raise ArtifactError(
                f"the weight {name!r} reaches {largest:.3g}, and fp16 ends at {LARGEST:.0f}; export with --precision fp32"
            )
        tiny = (array != 0) & (np.abs(array.astype(np.float16).astype(np.float32)) < SMALLEST)
        if tiny.any():
            flushed += int(tiny.sum())
            constants[name].CopyFrom(numpy_helper.from_array(np.where(tiny, np.float32(0), array), name))
    return flushed


def _converted(model: onnx.ModelProto, fp32: list[str], keep_io: bool) -> onnx.ModelProto:
    """The model after onnxruntime's converter."""
    path = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError:
        raise missing_extra("onnxruntime, which casts to fp16,", "cpu") from None
    finally:
        sys.path[:] = path  # the package appends its own folder to it
    return convert_float_to_float16(model, keep_io_types=keep_io, op_block_list=[], node_block_list=fp32)


def _join_islands(graph: onnx.GraphProto) -> None:
    """Removes every Cast of an fp32 value to fp16 and straight back, and the casts that then lead nowhere."""
    # Each value that was cast there and back, and the value that it was before.
    outputs = {value.name for value in graph.output}
    narrowed = {
        node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT16) and _is_new(node)
    }
    exact = {
        node.output[0]: narrowed[node.input[0]]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in narrowed
    }

    rest = [node for node in graph.node if not (_casts_to(node, TensorProto.FLOAT) and node.output[0] in exact)]

    # Its users take the value as it was before. An output of the graph keeps its name: the value before takes that name.
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    promoted = {source: name for name, source in exact.items() if name in outputs}
    for node in rest:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = promoted.get(name, name)

    # The casts back go, then the casts whose result nobody uses any more, then the descriptions of what is gone.
    used = {name for node in rest for name in node.input} | outputs
    replace_nodes(graph, [node for node in rest if not (_is_new(node) and used.isdisjoint(node.output))])
    there = {name for node in graph.node for name in node.output}
    described = [value for value in graph.value_info if value.name in there and value.name not in outputs]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _is_new(node: onnx.NodeProto) -> bool:
    """Whether the converter put it there."""
    return node.op_type == "Cast" and (
        node.name.endswith(("_cast_to_fp16_node", "_cast_to_fp32_node")) or node.name.startswith("graph_")
    )


def _casts_to(node: onnx.NodeProto, dtype: int) -> bool:
    return node.op_type == "Cast" and any(item.name == "to" and item.i == dtype for item in node.attribute)
