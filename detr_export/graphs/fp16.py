"""A strongly typed fp16 graph from an fp32 one: half the file, and what TensorRT builds its fast engines from.

Convolutions, matrix products and what lies between them become fp16. Islands stay fp32, because half precision breaks them:

- what no product feeds: position encoding, mask arithmetic, the scaling of uint8 images. There are sums over a whole row, an
  epsilon of 1e-6 (subnormal in fp16: 0/0 on padded rows) and `finfo(float32).min` (-inf, whose rows become NaN);
- softmax, and the scores from their product on with the mask that is added to them; sigmoid; every normalisation;
- the box head's last layer: fp16 would place a box of a 1333 pixel image in steps of up to 0.65 pixels;
- any node with a scalar that fp16 cannot hold;
- on request, `KEPT`: for hardware on which fp16 is not good enough there.

The casting is onnxruntime's `convert_float_to_float16`. Alone it would not do: it rounds to fp16 between the nodes of one
island, where that epsilon and that minimum live; `_join_islands` takes those casts out. It also raises tiny constants to the
smallest number that fp16 has; here they become zero beforehand (`_settle_constants`).
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from detr_export.graphs.editing import replace_nodes, sort_nodes
from detr_export.runtimes.errors import ArtifactError, first_line, missing_extra

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5; below it lie the subnormals, with ever fewer bits

_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
_FP32 = {
    *("Softmax", "LogSoftmax", "Sigmoid", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum", "Range"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "BatchNormalization"),
    *("ReduceMean", "ReduceSum", "ReduceL2", "MeanVarianceNormalization", "LpNormalization", "GlobalAveragePool"),
}
_BOXES = "pred_boxes"
_DETECTIONS = ("logits", _BOXES)

# What can be asked to stay fp32: the products around each softmax; or all from the transformer's first layer to the
# detections.
KEPT = ("attention", "transformer")


@dataclass(frozen=True)
class HalfWeights:
    """What became of an fp32 model's constants."""

    fp16: int  # elements stored as float16
    fp32: int  # elements left as float32: the constants of the islands
    flushed: int  # of those in fp16, elements too small for its normal numbers (6.1e-5), which became 0

    def summary(self) -> str:
        """For people."""
        share = self.fp16 / max(1, self.fp16 + self.fp32)
        return f"{share:.2%} of the constants are fp16, {self.flushed} of them too small for it and now 0"


def to_half(
    model: onnx.ModelProto, keep_io: bool = True, keep_fp32: str | None = None
) -> tuple[onnx.ModelProto, HalfWeights]:
    """Returns a typed mixed-precision copy of a simplified fp32 model.

    Args:
        model: fp32, batch norm folded into its convolutions, nodes in topological order.
        keep_io: inputs and outputs stay fp32; otherwise those become fp16.
        keep_fp32: one of `KEPT`, which stays fp32 as well.

    Raises:
        ArtifactError: a weight is beyond fp16's range, or the typed graph is not valid.
        BackendError: onnxruntime, whose converter this uses, is not installed.
    """
    half = copy.deepcopy(model)
    _name_nodes(half.graph)
    fp32 = _fp32_nodes(half.graph) | _kept_nodes(half.graph, keep_fp32)
    flushed = _settle_constants(half.graph, fp32)
    half = _converted(half, sorted(fp32), keep_io)
    _join_islands(half.graph)
    sort_nodes(half.graph)
    try:
        onnx.checker.check_model(half, full_check=True)
    except Exception as error:  # the checker and shape inference have an error class each
        raise ArtifactError(f"the fp16 graph is not valid ONNX: {first_line(error)}") from error
    check_half(half, keep_fp32)
    sizes = Counter({TensorProto.FLOAT16: 0, TensorProto.FLOAT: 0})
    for tensor in half.graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    return half, HalfWeights(sizes[TensorProto.FLOAT16], sizes[TensorProto.FLOAT], flushed)


def check_half(model: onnx.ModelProto, keep_fp32: str | None = None) -> None:
    """Checks that a graph is what `precision: fp16` promises, but for what `keep_fp32` names.

    ONNX Runtime's CPU computes fp16 nodes in fp32, so its results cannot tell; the types in the graph can.

    Raises:
        ArtifactError: a product other than the box head's last layer has fp32 weights, or an fp16 constant is subnormal or
            not finite.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    allowed = {node.name for node in _back_to_products(model.graph, _BOXES)} | _kept_nodes(model.graph, keep_fp32)
    for node in model.graph.node:
        for name in node.input if node.op_type in _PRODUCTS and node.name not in allowed else ():
            if name in constants and constants[name].data_type != TensorProto.FLOAT16:
                raise ArtifactError(f"the weight {name!r} of {node.op_type} {node.name!r} is not fp16")
    for tensor in constants.values():
        if tensor.data_type == TensorProto.FLOAT16:
            size = np.abs(numpy_helper.to_array(tensor).astype(np.float32))
            if not np.isfinite(size).all() or ((size > 0) & (size < SMALLEST)).any():
                raise ArtifactError(f"the fp16 constant {tensor.name!r} holds values that are not finite or subnormal")


def _name_nodes(graph: onnx.GraphProto) -> None:
    """The converter tells nodes apart by name."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_of_{len(graph.node)}"
        taken.add(node.name)


def _fp32_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes of the islands. Nodes without floats are among them, which the converter leaves alone."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fed: set[str] = set()  # values that come from a product; a Shape of such a value does not
    names = set()
    for node in graph.node:
        if node.op_type in _PRODUCTS or (node.op_type not in ("Shape", "Size") and not fed.isdisjoint(node.input)):
            fed.update(node.output)
        too_fine = any(name in constants and not _holds_scalar(constants[name]) for name in node.input)
        if node.op_type in _FP32 or fed.isdisjoint(node.output) or too_fine:
            names.add(node.name)
    for node in graph.node:
        if node.op_type == "Softmax":
            names.update(found.name for found in _back_to_products(graph, node.input[0]) if found.op_type not in _PRODUCTS)
    names.update(node.name for node in _back_to_products(graph, _BOXES))
    return names


def _kept_nodes(graph: onnx.GraphProto, what: str | None) -> set[str]:
    """Names of the nodes of one of `KEPT`."""
    if what is None:
        return set()
    if what not in KEPT:
        raise ArtifactError(f"keep_fp32 is {what!r}; expected {' or '.join(KEPT)}")
    if what == "attention":
        softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
        found = [item for node in softmaxes for item in _back_to_products(graph, node.input[0])]
        weights = {node.output[0] for node in softmaxes}  # and what only moves them
        for node in graph.node:
            if not weights.isdisjoint(node.input):
                found.append(node)
                if node.op_type not in _PRODUCTS:
                    weights.update(node.output)
        return {node.name for node in found}
    leading = _ancestors(graph, _DETECTIONS)
    convolutions = [node for node in leading if node.op_type == "Conv"]
    # The last one projects the feature map: whatever leads to it is the backbone, and the masks' head leads elsewhere.
    backbone = {node.name for node in _ancestors(graph, convolutions[-1].output)} if convolutions else set()
    return {node.name for node in leading} - backbone


def _ancestors(graph: onnx.GraphProto, values: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that lead to some values, in the graph's order."""
    wanted = set(values)
    found = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _holds_scalar(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) != 1:
        return True
    size = float(np.abs(numpy_helper.to_array(tensor)).item())
    return size == 0 or SMALLEST <= size <= LARGEST


def _back_to_products(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """The nodes that lead to `value` from the nearest products, those included."""
    producers = {name: node for node in graph.node for name in node.output}
    found: dict[str, onnx.NodeProto] = {}
    waiting = [value]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting.extend(() if node.op_type in _PRODUCTS or node.op_type == "Shape" else node.input)
    return list(found.values())


def _settle_constants(graph: onnx.GraphProto, fp32: set[str]) -> int:
    """Makes the constants of fp16 nodes ones that fp16 holds, and gives islands a copy of what they share with them.

    A weight below 6.1e-5 changes a product by less than the rounding of its other weights does, and GPUs may flush
    subnormal numbers on their own, so it becomes 0 here.

    Returns:
        How many elements became 0.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    shared = {name for node in graph.node if node.name not in fp32 for name in node.input if name in constants}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.name in fp32 and name in shared:
                node.input[index] = f"{name}_fp32"
                if node.input[index] not in constants:
                    twin = graph.initializer.add()
                    twin.CopyFrom(constants[name])
                    twin.name = node.input[index]
                    constants[twin.name] = twin
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
    path = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError:
        raise missing_extra("onnxruntime, which casts to fp16,", "cpu") from None
    finally:
        sys.path[:] = path  # the package appends its own folder to it
    return convert_float_to_float16(model, keep_io_types=keep_io, op_block_list=[], node_block_list=fp32)


def _join_islands(graph: onnx.GraphProto) -> None:
    """Takes out every Cast to fp16 and straight back of a value that is fp32, and casts that then lead nowhere."""
    outputs = {value.name for value in graph.output}
    narrowed = {
        node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT16) and _is_new(node)
    }
    exact = {
        node.output[0]: narrowed[node.input[0]]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in narrowed
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    promoted = {source: name for name, source in exact.items() if name in outputs}  # an island at an output
    for node in graph.node:
        if not (_casts_to(node, TensorProto.FLOAT) and node.output[0] in exact):
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = promoted.get(name, name)
    rest = [node for node in graph.node if not (_casts_to(node, TensorProto.FLOAT) and node.output[0] in exact)]
    replace_nodes(graph, rest)
    used = {name for node in graph.node for name in node.input} | outputs
    replace_nodes(graph, (node for node in graph.node if not (_is_new(node) and used.isdisjoint(node.output))))
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
