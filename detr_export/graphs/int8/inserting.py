"""Puts QuantizeLinear and DequantizeLinear around the layers that compute in int8.

onnxruntime's quantiser makes the nodes, the scales and the weights. What is done here is what its graphs lack so that ONNX
Runtime's own CPU kernels take them, seen in 1.32 on x86:

- Each reader of a value has a pair of its own. ONNX Runtime computes in uint8, and a QuantizeLinear with two readers keeps
  its int8: the convolutions between the two kinds then stay float.
- Pairs of one value differ in their `axis`, which means nothing beside a single scale. Equal ones would be merged again.
- A convolution's result is quantised before its ReLU, by the scale of what the ReLU gives. The numbers are those of a
  quantised ReLU, because what is cut off below is what the ReLU makes 0.
- Biases stay float in the file. ONNX Runtime from 1.21 on quantises them as it loads; TensorRT takes no int32 ones.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper

from detr_export.graphs.editing import replace_nodes, sort_nodes
from detr_export.graphs.fp16 import SMALLEST
from detr_export.graphs.int8.layers import CONVOLUTIONS, Layer
from detr_export.graphs.int8.library import QDQQuantizer, QuantType, TensorData

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_LEVELS = 127
_OWN = "own_copy_for"  # begins the names of helper nodes, which are gone in the end
_FLOAT_RESULTS = ["MatMul", "Gemm"]  # an addition follows each of them, so their results stay as they are


def watched_values(graph: onnx.GraphProto, layers: Collection[Layer]) -> list[str]:
    """Names of the values whose thresholds `insert` needs."""
    chosen = {layer.name: np.dtype(np.float32) for layer in layers}
    found = []
    for node in graph.node:
        if node.name in chosen:
            found.append(node.input[0])
            if node.op_type in CONVOLUTIONS:
                found.append(settled(graph, node.output[0]))
    for node, _ in _residual_adds(graph, chosen):
        found += [*node.input, settled(graph, node.output[0])]
    return list(dict.fromkeys(found))


def insert(model: onnx.ModelProto, layers: Collection[Layer], thresholds: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of a float graph in which some layers are int8.

    Args:
        model: fp32, or typed fp16; then its opset is at least 19. Nodes in topological order and named.
        layers: those that become int8.
        thresholds: the magnitude that becomes 127, for each of `watched_values`.
    """
    twin = copy.deepcopy(model)
    graph = twin.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dtypes = {layer.name: helper.tensor_dtype_to_np_dtype(weights[layer.weight].data_type) for layer in layers}
    adds = {node.name: dtype for node, dtype in _residual_adds(graph, dtypes)}
    ranges: dict[str, TensorData] = {}

    # Every int8 node gets a copy of each value that it reads, and what a node gives has the scale of the ReLU behind it.
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        dtype = dtypes.get(node.name, adds.get(node.name))
        if dtype is not None:
            for index, name in enumerate(node.input[:1] if node.name in dtypes else node.input):
                own = f"{_OWN}_{node.name}_{index}"
                ranges[own] = _range(thresholds[name], dtype)
                nodes.append(helper.make_node("Identity", [name], [own], own))
                node.input[index] = own
            if node.op_type not in _FLOAT_RESULTS:
                ranges[node.output[0]] = _range(thresholds[settled(model.graph, node.output[0])], dtype)
        nodes.append(node)
    replace_nodes(graph, nodes)

    # onnxruntime's quantiser
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns on the root logger
    try:
        quantizer = QDQQuantizer(
            twin,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=ranges,
            nodes_to_quantize=[*dtypes, *adds],
            nodes_to_exclude=[],
            op_types_to_quantize=[*CONVOLUTIONS, *_FLOAT_RESULTS, "Add"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": _FLOAT_RESULTS,
                "MinimumRealRange": 2 * _LEVELS * SMALLEST,  # fp16 holds every scale as a normal number
            },
        )
        made = quantizer.quantize_model()
    finally:
        logger.setLevel(level)

    # The copies go, and pairs of one value are kept apart.
    copies = [node for node in made.graph.node if node.op_type == "Identity" and node.name.startswith(_OWN)]
    originals = {node.output[0]: node.input[0] for node in copies}
    rest = [node for node in made.graph.node if node.output[0] not in originals]
    for node in rest:
        for index, name in enumerate(node.input):
            node.input[index] = originals.get(name, name)
    replace_nodes(made.graph, rest)
    _keep_apart(made.graph)
    sort_nodes(made.graph)
    del made.graph.value_info[:]
    return made


def settled(graph: onnx.GraphProto, name: str) -> str:
    """What the only reader of a value makes of it if that is a ReLU; otherwise the value."""
    readers = [node for node in graph.node if name in node.input]
    if len(readers) == 1 and readers[0].op_type == "Relu":
        return str(readers[0].output[0])
    return name


def _residual_adds(graph: onnx.GraphProto, dtypes: Mapping[str, np.dtype]) -> list[tuple[onnx.NodeProto, np.dtype]]:
    """The sums that take what an int8 convolution gives, and no constant; each with the convolution's float type."""
    results = {
        node.output[0]: dtypes[node.name] for node in graph.node if node.op_type in CONVOLUTIONS and node.name in dtypes
    }
    constants = {tensor.name for tensor in graph.initializer}
    return [
        (node, next(results[name] for name in node.input if name in results))
        for node in graph.node
        if node.op_type == "Add" and not results.keys().isdisjoint(node.input) and constants.isdisjoint(node.input)
    ]


def _keep_apart(graph: onnx.GraphProto) -> None:
    """Gives the QuantizeLinear nodes of one value, and their DequantizeLinear nodes, an axis each."""
    readers = {node.input[0]: node for node in graph.node if node.op_type == DEQUANTIZE}
    seen: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == QUANTIZE:
            index = seen.get(node.input[0], 0)
            seen[node.input[0]] = index + 1
            if index:
                for item in (node, readers[node.output[0]]):
                    item.attribute.append(helper.make_attribute("axis", index - 1 if index < 2 else index))


def _range(size: float, dtype: np.dtype) -> TensorData:
    return TensorData(lowest=np.array(-size, dtype=dtype), highest=np.array(size, dtype=dtype))
