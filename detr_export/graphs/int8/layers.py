"""Which layers of a graph can compute in int8, by the PyTorch module that each node comes from.

A layer is a convolution or a matrix product with constant weights. So the two products of an attention are none: they stay
float, and TensorRT fuses them. Softmax and norms are none either.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from detr_export.graphs.modules import module_of
from detr_export.runtimes.errors import ArtifactError

# What each scope holds: the first names in the paths of modules. None: everything.
SCOPES: dict[str, tuple[str, ...] | None] = {
    "backbone": ("backbone",),
    "encoder": ("backbone", "input_projection", "encoder"),
    "all": None,
}
DEFAULT_SCOPE = "encoder"
CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm")
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_WRAPPERS = ("detr", "model")  # they begin the paths of modules, in this order, each or none of them
_LAST_OF_BOXES = "bbox_predictor.layers.2"
_IMAGE_CHANNELS = 4  # a convolution of the backbone with no more channels reads the image


@dataclass(frozen=True)
class Layer:
    """A convolution or a product with weights."""

    name: str  # of its node
    module: str  # of PyTorch
    op_type: str
    weight: str  # name of the constant
    outputs: int  # channels that it gives
    kept: str | None = None  # why it stays float although it is in the scope; None: it becomes int8


def layers_of(graph: onnx.GraphProto, scope: str) -> list[Layer]:
    """The layers of a scope, in the graph's order; those that always stay float are among them, with the reason.

    Raises:
        ArtifactError: the scope is unknown, or the graph has no layer of it that can be int8.
    """
    if scope not in SCOPES:
        raise ArtifactError(f"int8_scope is {scope!r}; expected {', '.join(SCOPES)}")
    parts = SCOPES[scope]
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in _FLOATS}
    found = []
    for node in graph.node:
        module = module_of(node)
        if node.op_type not in (*CONVOLUTIONS, *_PRODUCTS) or module is None or node.input[1] not in constants:
            continue
        path = _path(module)
        if parts is not None and path.split(".", 1)[0] not in parts:
            continue
        weight = constants[node.input[1]]
        reason = _reason(node, path, weight)
        if reason is None and node.op_type in CONVOLUTIONS:
            reason = _reason_behind(graph, node.output[0])
        found.append(Layer(node.name, module, node.op_type, weight.name, int(weight.dims[weight_axis(node)]), reason))
    if all(layer.kept is not None for layer in found):
        named = any(module_of(node) for node in graph.node)
        hint = "" if named else "; its nodes name no modules, export with --opset 18 or later"
        raise ArtifactError(f"the graph has no layer in the scope {scope!r} that can be int8{hint}")
    return found


def int8_layers(layers: Collection[Layer], kept_float: Collection[str] = ()) -> list[Layer]:
    """Those that become int8, when the layers with the modules in `kept_float` stay float, too."""
    return [layer for layer in layers if layer.kept is None and layer.module not in kept_float]


def _path(module: str) -> str:
    """A module's path without the wrappers that it begins with."""
    for wrapper in _WRAPPERS:
        module = module.removeprefix(f"{wrapper}.")
    return module


def _reason(node: onnx.NodeProto, path: str, weight: TensorProto) -> str | None:
    """Why a layer stays float; None if it can be int8."""
    image = path.startswith("backbone.") and weight.dims[1] <= _IMAGE_CHANNELS and _groups(node) == 1
    if node.op_type in CONVOLUTIONS and image:
        return "it reads the image, whose values need more than eight bits"
    if node.op_type == "MatMul" and len(weight.dims) != 2:
        return "it is several products in one, which no runtime computes in int8"
    if path == _LAST_OF_BOXES:
        return "eight bits would place boxes in steps of several pixels"
    return None


def _reason_behind(graph: onnx.GraphProto, value: str) -> str | None:
    """Why what follows a convolution keeps it float; None if it can be int8."""
    if any(node.op_type == "Shape" and node.input[0] == value for node in graph.node):
        return "a group norm reads its shape, and then ONNX Runtime computes it in float"
    reached = {value}
    for node in graph.node:
        if node.op_type in _MOVES and not reached.isdisjoint(node.input):
            reached.update(node.output)
    if not reached.isdisjoint(item.name for item in graph.output):
        return "its result is an output of the model"
    return None


def weight_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weights along which each output channel has its own scale."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(item.name == "transB" and item.i for item in node.attribute) else 1
    return 1


def _groups(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)
