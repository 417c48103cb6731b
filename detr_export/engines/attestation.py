"""Does an engine compute in the precision that was asked for? Its layers are compared with the graph they were made from.

This reads the words of the engine inspector of TensorRT 8.5 to 11. A tensor's "Format/Datatype" is "Row major linear FP16
format", "Half" or similar. A layer's "Metadata" names its ONNX nodes; versions without metadata join these names with " + "
in the layer's "Name".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from detr_export.runtimes.errors import ArtifactError, AttestationError

_COMPUTE_OPERATORS = ("Conv", "MatMul", "Gemm", "ConvTranspose")
_COMPUTE_LAYERS = re.compile(r"conv|gemm|matmul|matrix|mha", re.IGNORECASE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
# The first of these that the format of an input shows. A quantised layer may have inputs of several precisions.
_FORMATS = (
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half|float16", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)
_ELEMENT_TYPES = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
_NAMED = 3  # how many layers an error message names


def graph_precision(model: onnx.ModelProto) -> str:
    """What a graph computes in: "int8" when it holds QuantizeLinear nodes, else the lowest precision of its products.

    The lowest, not the most frequent: an fp16 graph whose transformer stays fp32 has more fp32 products than fp16 ones.

    Raises:
        ArtifactError: the graph has no convolution and no product.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    found = set(node_precisions(model).values())
    if not found:
        raise ArtifactError("the graph holds no convolution and no matrix product, so it is not a DETR")
    return next(name for name in ("fp16", "bf16", "fp32") if name in found)


def node_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """The precision of each convolution and product, by the node's name; "int8" where its input was just dequantised."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in _COMPUTE_OPERATORS:
            precision = "int8" if node.input[0] in dequantised else _ELEMENT_TYPES.get(types.get(node.output[0], 0))
            if precision is not None:
                found[node.name] = precision
    return found


def attest(layers: Sequence[Any], nodes: Mapping[str, str]) -> dict[str, int]:
    """Compares an engine's layers with the graph's nodes.

    Args:
        layers: from the engine inspector.
        nodes: from `node_precisions`.

    Returns:
        How many layers compute in each precision.

    Raises:
        AttestationError: a layer computes in a precision that none of its nodes has, or the inspector does not show any.
    """
    counts: Counter[str] = Counter()
    wrong = []
    for layer in layers:
        if not isinstance(layer, dict) or not _computes(layer):
            continue
        precision = _precision(layer)
        if precision is None:
            continue
        counts[precision] += 1
        wanted = {nodes[name] for name in _nodes(layer) if name in nodes}
        if wanted and precision not in wanted:
            wrong.append(f"{layer.get('Name')} in {precision} instead of {' or '.join(sorted(wanted))}")
    if wrong:
        raise AttestationError(
            f"the engine is not what was asked for: TensorRT runs {len(wrong)} of {counts.total()} computing layers in "
            f"another precision than the graph's, such as {'; '.join(wrong[:_NAMED])}"
        )
    wanted = set(nodes.values()) - {"fp32"}
    if not counts or (wanted and not wanted & set(counts)):
        raise AttestationError(
            "the engine's precision cannot be attested: the engine inspector shows "
            f"{dict(counts) or 'no layer that computes'}, and the graph has {dict(Counter(nodes.values()))}"
        )
    return dict(counts)


def _computes(layer: Mapping[str, Any]) -> bool:
    kind = " ".join(str(layer.get(key, "")) for key in ("LayerType", "ParameterType", "ParameterSubType"))
    return bool(_COMPUTE_LAYERS.search(kind))


def _precision(layer: Mapping[str, Any]) -> str | None:
    formats = [
        str(tensor.get("Format/Datatype") or tensor.get("Datatype") or tensor.get("Format") or "")
        for tensor in layer.get("Inputs", ())
        if isinstance(tensor, dict)
    ]
    return next((name for name, words in _FORMATS if any(words.search(text) for text in formats)), None)


def _nodes(layer: Mapping[str, Any]) -> list[str]:
    named = _ONNX_NODE.findall(str(layer.get("Metadata", "")))
    return named or str(layer.get("Name", "")).split(" + ")
