"""What TensorRT says of its layers, in the form of each version: the inspector's JSON, and lines of the builder's log.

The forms are those of public logs of 8.5 and 10, and of a build with TensorRT-RTX 1.7 for 11. The double fuses nothing: each
node of the graph is a layer. Layers of later profiles have "[profile 1]" behind their names, as in the real thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

_PRODUCTS = ("Conv", "MatMul", "Gemm")
_WORDS = {
    "FLOAT": "Float",
    "HALF": "Half",
    "INT8": "Int8",
    "INT32": "Int32",
    "INT64": "Int64",
    "BOOL": "Bool",
    "UINT8": "UInt8",
}
_SENTENCES = {
    "FLOAT": "Row major linear FP32",
    "HALF": "Channel major FP16 format where channel % 8 == 0",
    "INT8": "Thirty-two wide channel vectorized row major Int8 format",
    "INT32": "Row major linear INT32",
    "INT64": "Row major linear INT64",
    "BOOL": "Row major linear BOOL",
    "UINT8": "Row major linear UINT8",
}
_UNKNOWN = "N/A due to dynamic shapes"


@dataclass(frozen=True)
class Asked:
    """What the layers are of."""

    model: onnx.ModelProto
    dtypes: Mapping[str, str]  # names of TensorRT's data types by tensor, as far as they are known
    major: int  # TensorRT's version
    profiles: int  # how many the engine has
    products: str | None = None  # the data type that convolutions and products show; the graph's when None


def inspector_layers(asked: Asked, shown: int | None) -> list[dict[str, Any]]:
    """The inspector's layers of all profiles; `shown` is the one whose shapes are set, and None when there is no context."""
    layers = []
    for profile in range(asked.profiles):
        for number, node in enumerate(asked.model.graph.node):
            layers.append(_layer(asked, node, number, profile, profile == shown))
    return layers


def log_message(asked: Asked) -> str:
    """What the builder logs at its end."""
    if asked.major < 10:
        return "\n".join(["Engine Layer Information:", *(_line_8(asked, node) for node in asked.model.graph.node)])
    lines = []
    for profile in range(asked.profiles):
        for number, node in enumerate(asked.model.graph.node):
            lines.append(
                ", ".join(f"{key}: {_text(value)}" for key, value in _layer(asked, node, number, profile, True).items())
            )
    return "\n".join(["Layers:", *lines, "", "I/O Tensors:", f" Name: {asked.model.graph.input[0].name}, IOMode: Input"])


def node_name(node: onnx.NodeProto) -> str:
    """As TensorRT's parser names it."""
    return node.name or f"node_of_{node.output[0]}"


def _layer(asked: Asked, node: onnx.NodeProto, number: int, profile: int, known: bool) -> dict[str, Any]:
    mark = f" [profile {profile}]" if profile else ""
    constants = {tensor.name: tensor for tensor in asked.model.graph.initializer}
    name = node_name(node)
    weights = [constants[item] for item in node.input if item in constants]
    product = node.op_type in _PRODUCTS
    read = [item for item in node.input if item and item not in constants]

    def dtype(item: str) -> str | None:
        return asked.products if product and asked.products is not None else asked.dtypes.get(item)

    if asked.major < 10 or (asked.major == 10 and node.op_type == "Conv"):  # not of the compiler inside TensorRT
        kinds = {"Conv": "CaskConvolution", "MatMul": "MatrixMultiply", "Gemm": "MatrixMultiply", "Reshape": "Shuffle"}
        layer = {
            "Name": f"{name}{mark}",
            "LayerType": kinds.get(node.op_type, "PointWiseV2"),
            "Inputs": [_tensor_8(f"{item}{mark}", dtype(item), known) for item in read],
            "Outputs": [_tensor_8(f"{item}{mark}", dtype(item), known) for item in node.output],
        }
        if node.op_type == "Conv" and weights:
            kind = _WORDS[dtype(weights[0].name) or "FLOAT"]
            layer |= {"ParameterType": "Convolution", "Weights": {"Type": kind, "Count": math.prod(weights[0].dims)}}
        layer |= {"TacticName": "", "TacticValue": "0x00000000000003e8"}
        return (
            layer if asked.major < 10 else {**layer, "StreamId": 0, "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: x]"}
        )

    kinds = {"Conv": "correlation", "MatMul": "gemm", "Gemm": "gemm"}
    layer = {
        "Name": f"{name}{mark}_myl{profile}_{number}",
        "LayerType": kinds.get(node.op_type, "kgen"),
        "Inputs": [_tensor(asked, f"{item}{mark}", dtype(item), known) for item in read],
    }
    if asked.major > 10:
        layer["Constants"] = [
            _tensor(asked, f"__mye{number}_dconst", dtype(item.name), True, tuple(item.dims)) for item in weights
        ]
    return {
        **layer,
        "Outputs": [_tensor(asked, f"{item}{mark}", dtype(item), known) for item in node.output],
        "TacticName": "__myelin_CASK_STUB",
        "StreamId": 0,
        "Metadata": f"[ONNX Layer: {name}]",
    }


def _tensor_8(name: str, dtype: str | None, known: bool) -> dict[str, Any]:
    text = _SENTENCES[dtype] if known and dtype is not None else _UNKNOWN
    return {"Name": name, "Location": "Device", "Dimensions": [-1], "Format/Datatype": text}


def _tensor(asked: Asked, name: str, dtype: str | None, known: bool, shape: tuple[int, ...] = (-1,)) -> dict[str, Any]:
    word = _WORDS[dtype] if known and dtype is not None else _UNKNOWN
    tensor: dict[str, Any] = {"Name": name, "Dimensions": list(shape)}
    if asked.major == 10:
        return {**tensor, "Format/Datatype": word}
    return {**tensor, "Strides": [1], "StrideOrder": [0], "Datatype": word, "Format": "(Linear) Row major linear format"}


def _text(value: Any) -> str:
    """A value as the log writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[ " + ", ".join(map(_text, value)).replace(" }", "}") + "]"
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _line_8(asked: Asked, node: onnx.NodeProto) -> str:
    shown = [
        f"{item} ({_WORDS[asked.dtypes.get(item, 'FLOAT')]}[-1])"
        for item in (node.input[0] if node.input else "", node.output[0])
    ]
    return f"Layer({node.op_type}): {node_name(node)}, Tactic: 0x00000000000003e8, {shown[0]} -> {shown[1]}"
