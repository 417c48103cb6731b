"""Which nodes of an fp16 graph stay fp32.

Convolutions, matrix products and what lies between them become fp16. Islands stay fp32, because fp16 breaks them:

- what no product feeds: position encoding, mask arithmetic, the scaling of uint8 images. There are sums over a whole row, an
  epsilon of 1e-6 (subnormal in fp16: 0/0 on padded rows) and `finfo(float32).min` (-inf, whose rows become NaN);
- softmax, and the scores from their product on with the mask that is added to them; sigmoid; every normalisation;
- the box head's last layer: fp16 would place a box of a 1333 pixel image in steps of up to 0.65 pixels;
- any node with a scalar that fp16 cannot hold;
- on request, one of `KEPT`: for hardware on which fp16 is not good enough there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from detr_export.graphs.fp16 import LARGEST, SMALLEST
from detr_export.runtimes.errors import ArtifactError

PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
# What a caller can ask to stay fp32: the products around each softmax; or everything from the projection of the feature map,
# which the transformer starts from, to the detections.
KEPT = ("attention", "transformer")

_FP32 = {
    *("Softmax", "LogSoftmax", "Sigmoid", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum", "Range"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "BatchNormalization"),
    *("ReduceMean", "ReduceSum", "ReduceL2", "MeanVarianceNormalization", "LpNormalization", "GlobalAveragePool"),
}
_BOXES = "pred_boxes"
_DETECTIONS = ("logits", _BOXES)


def fp32_nodes(graph: onnx.GraphProto, keep_fp32: str | None = None) -> set[str]:
    """Names of the nodes that stay fp32. Nodes without floats are among them, which casting leaves alone.

    Args:
        graph: fp32, its nodes in topological order and named.
        keep_fp32: one of `KEPT`, or None.

    Raises:
        ArtifactError: `keep_fp32` is unknown.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = set()

    # What no product feeds, the operators that are always fp32, and what has a scalar that fp16 cannot hold.
    fed: set[str] = set()  # values that come from a product; a Shape of such a value does not
    for node in graph.node:
        if node.op_type in PRODUCTS or (node.op_type not in ("Shape", "Size") and not fed.isdisjoint(node.input)):
            fed.update(node.output)
        too_fine = any(name in constants and not _holds_scalar(constants[name]) for name in node.input)
        if node.op_type in _FP32 or fed.isdisjoint(node.output) or too_fine:
            names.add(node.name)

    # The scores of each softmax, from their product on.
    for node in graph.node:
        if node.op_type == "Softmax":
            names.update(found.name for found in _back_to_products(graph, node.input[0]) if found.op_type not in PRODUCTS)
    return names | box_nodes(graph) | kept_nodes(graph, keep_fp32)


def box_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes of the box head's last layer, its product included."""
    return {node.name for node in _back_to_products(graph, _BOXES)}


def kept_nodes(graph: onnx.GraphProto, what: str | None) -> set[str]:
    """Names of the nodes of one of `KEPT`; none for None.

    Raises:
        ArtifactError: it is unknown.
    """
    if what is None:
        return set()
    if what not in KEPT:
        raise ArtifactError(f"keep_fp32 is {what!r}; expected {' or '.join(KEPT)}")
    return _attention_nodes(graph) if what == "attention" else _transformer_nodes(graph)


def _attention_nodes(graph: onnx.GraphProto) -> set[str]:
    """The products before and after each softmax, and what lies between them."""
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    found = [item for node in softmaxes for item in _back_to_products(graph, node.input[0])]
    weights = {node.output[0] for node in softmaxes}  # and what only moves them
    for node in graph.node:
        if not weights.isdisjoint(node.input):
            found.append(node)
            if node.op_type not in PRODUCTS:
                weights.update(node.output)
    return {node.name for node in found}


def _transformer_nodes(graph: onnx.GraphProto) -> set[str]:
    """What leads to the detections, without the backbone."""
    # The mask head's convolutions do not lead to the detections, so all that do are the backbone's. The first product behind
    # them projects what they give, the feature map. What leads to that is the backbone. (The product of the positions may
    # come earlier in the graph, but no convolution leads to it.)
    leading = _ancestors(graph, _DETECTIONS)
    last = max((index for index, node in enumerate(leading) if node.op_type == "Conv"), default=-1)
    for node in leading[last + 1 :]:
        behind = _back_to_products(graph, node.input[0]) if node.op_type in PRODUCTS else []
        if any(found.op_type == "Conv" for found in behind):
            return {found.name for found in leading} - {found.name for found in _ancestors(graph, node.input)}
    return {node.name for node in leading}


def _ancestors(graph: onnx.GraphProto, values: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that lead to some values, in the graph's order."""
    wanted = set(values)
    found = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _back_to_products(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """The nodes that lead to `value` from the nearest products, those included."""
    producers = {name: node for node in graph.node for name in node.output}
    found: dict[str, onnx.NodeProto] = {}
    waiting = [value]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting.extend(() if node.op_type in PRODUCTS or node.op_type == "Shape" else node.input)
    return list(found.values())


def _holds_scalar(tensor: TensorProto) -> bool:
    """Whether fp16 holds a scalar as a normal number; true of everything that is no float scalar."""
    if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) != 1:
        return True
    size = float(np.abs(numpy_helper.to_array(tensor)).item())
    return size == 0 or SMALLEST <= size <= LARGEST
