"""Whether TensorRT's ONNX parser reads a graph, and the form that TensorRT 8.5 reads.

What each version reads is in `tensorrt_operators.json`, with its source.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.editing import opset_of, replace_nodes
from detr_export.graphs.quantization import check_quantized
from detr_export.runtimes.errors import ArtifactError

_NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "DOUBLE",
    TensorProto.INT64: "INT64",
    TensorProto.INT32: "INT32",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
_IR_VERSION_8_5 = 8  # of ONNX 1.12, which TensorRT 8.5 was built with


@dataclass(frozen=True)
class ParserRules:
    """What the parser of one TensorRT version reads."""

    version: str
    opsets: range
    dtypes: dict[str, frozenset[str]]  # by operator
    read_as: dict[str, str]  # dtypes that it turns into others
    constant_inputs: dict[str, list[int]]  # by operator, the inputs that must be initialisers


@functools.cache
def parser_rules(version: str) -> ParserRules:
    """The rules for `8.5`, `10`, `11`, or a longer number that starts so.

    Raises:
        ArtifactError: there is no list for that version.
    """
    text = resources.files("detr_export.graphs").joinpath("tensorrt_operators.json").read_text(encoding="utf-8")
    known = []
    for item in json.loads(text)["lists"]:
        for name in item["versions"]:
            known.append(name)
            if version == name or version.startswith(f"{name}."):
                groups = item["groups"]
                dtypes = {operator: frozenset(group["dtypes"]) for group in groups for operator in group["operators"]}
                low, high = item["opsets"]
                return ParserRules(version, range(low, high + 1), dtypes, item["read_as"], item["constant_inputs"])
    raise ArtifactError(f"there is no list of what TensorRT {version} reads; expected a version of {', '.join(known)}")


def check_parsable(model: onnx.ModelProto, version: str) -> None:
    """Checks that TensorRT's parser reads every operator of a graph, in the dtypes that the graph has.

    Raises:
        ArtifactError: names what is not read, and by which version.
    """
    rules = parser_rules(version)
    problems = list(dict.fromkeys(_problems(model, rules)))
    if problems:
        remedy = "; graphs.tensorrt.rewrite_for_8_5 mends some of it" if version.startswith("8.5") else ""
        raise ArtifactError(f"TensorRT {version} does not read the graph: {', '.join(problems)}{remedy}")


def readable_graph(model: onnx.ModelProto, version: str) -> onnx.ModelProto:
    """The graph in a form that TensorRT of that version reads: rewritten for 8.x, else as it is.

    Raises:
        ArtifactError: the version does not read it, its quantised nodes break a rule, or there is no list for the version.
    """
    if version.startswith("8."):  # 8.6 reads more, but all that 8.5 does
        return rewrite_for_8_5(model)
    check_parsable(model, version)
    check_quantized(model)  # 8.x has other rules: its int8 is not in the graph's types
    return model


def rewrite_for_8_5(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy that computes the same in operators that TensorRT 8.5 reads.

    LayerNormalization becomes its definition, in fp32, under names that start with the node's own: a builder with the FP16
    flag must keep them in fp32. A Shape of some dimensions becomes a Shape of all with a Slice, because older parsers ignore
    `start` and `end`. The parser itself turns int64 into int32.

    Raises:
        ArtifactError: the graph's opset is above 17, or it holds something else that 8.5 does not read.
    """
    opset = opset_of(model)
    if opset > parser_rules("8.5").opsets.stop - 1:
        raise ArtifactError(f"the graph has opset {opset}, and TensorRT 8.5 reads 17 at most; export with --opset 17")
    rewritten = copy.deepcopy(model)
    rewritten.ir_version = min(rewritten.ir_version, _IR_VERSION_8_5)
    graph = rewritten.graph
    constants = _Constants(graph)
    replace_nodes(graph, [new for node in graph.node for new in _rewritten(node, constants)])
    check_parsable(rewritten, "8.5")
    return rewritten


class _Constants:
    """Adds initialisers to a graph; equal ones only once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._names: dict[tuple[str, bytes], str] = {}

    def add(self, values: list[int] | float) -> str:
        array = np.array(values, dtype=np.float32 if isinstance(values, float) else np.int64)
        key = (array.dtype.name, array.tobytes())
        if key not in self._names:
            self._names[key] = f"constant_for_8_5_{len(self._names)}"
            self._graph.initializer.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]


def _rewritten(node: onnx.NodeProto, constants: _Constants) -> list[onnx.NodeProto]:
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "LayerNormalization":
        return _layer_norm(node, attributes, constants)
    if node.op_type == "Shape" and _is_partial(attributes):
        whole = f"{node.output[0]}_of_all"
        start, end = attributes.get("start", 0), attributes.get("end", np.iinfo(np.int32).max)
        bounds = [constants.add([value]) for value in (start, end, 0)]
        return [
            helper.make_node("Shape", [node.input[0]], [whole], name=f"{node.name}/Shape"),
            helper.make_node("Slice", [whole, *bounds], [node.output[0]], name=f"{node.name}/Slice"),
        ]
    return [node]


def _layer_norm(node: onnx.NodeProto, attributes: dict[str, Any], constants: _Constants) -> list[onnx.NodeProto]:
    axis = attributes.get("axis", -1)
    if axis >= 0 or any(node.output[1:]):
        raise ArtifactError(f"{node.name} has axis {axis} or several outputs; expected a negative axis and one output")
    value, scale, *bias = node.input
    name = f"{node.name}/{{}}".format
    axes = list(range(axis, 0))

    def make(operator: str, inputs: list[str], step: str, **options: Any) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [name(step)], name=name(step), **options)

    nodes = [
        make("ReduceMean", [value], "mean", axes=axes, keepdims=1),
        make("Sub", [value, name("mean")], "centred"),
        make("Mul", [name("centred"), name("centred")], "squared"),
        make("ReduceMean", [name("squared")], "variance", axes=axes, keepdims=1),
        make("Add", [name("variance"), constants.add(float(attributes.get("epsilon", 1e-5)))], "padded_variance"),
        make("Sqrt", [name("padded_variance")], "deviation"),
        make("Div", [name("centred"), name("deviation")], "normalized"),
        make("Mul", [name("normalized"), scale], "scaled"),
    ]
    if bias:
        nodes.append(make("Add", [name("scaled"), bias[0]], "shifted"))
    nodes[-1].output[0] = node.output[0]
    return nodes


def _problems(model: onnx.ModelProto, rules: ParserRules) -> Iterator[str]:
    opset = opset_of(model)
    if opset not in rules.opsets:
        yield f"opset {opset} is not in {rules.opsets.start} to {rules.opsets.stop - 1}"
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    dtypes = {value.name: value.type.tensor_type.elem_type for value in [*typed.input, *typed.value_info, *typed.output]}
    dtypes |= {tensor.name: tensor.data_type for tensor in typed.initializer}
    constants = {tensor.name for tensor in typed.initializer}
    outside = {value.name for value in [*typed.input, *typed.output]}
    for node in typed.node:
        if node.op_type not in rules.dtypes or node.domain not in ("", "ai.onnx"):
            yield f"operator {node.op_type}"
            continue
        for name in _typed_values(node, opset):
            dtype = _NAMES.get(dtypes.get(name, TensorProto.UNDEFINED), "an unknown dtype")
            if dtype == "UINT8" and node.op_type == "Cast" and name in outside:
                continue  # the one place where every version takes it
            dtype = rules.read_as.get(dtype, dtype)
            if dtype not in rules.dtypes[node.op_type] or dtype == "UINT8":
                yield f"{node.op_type} of {dtype}"
        for index in rules.constant_inputs.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] and node.input[index] not in constants:
                yield f"{node.op_type} whose input {index} is computed"
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Shape" and _is_partial(attributes) and rules.version.startswith("8."):
            yield "Shape of some dimensions"


def _typed_values(node: onnx.NodeProto, opset: int) -> list[str]:
    """The values whose dtypes the lists restrict: what the operator computes with, not its indices, sizes or flags."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    free = {item.type_param_str for item in schema.type_constraints if len(item.allowed_type_strs) > 1}
    meant = {item[0].type_str for item in (schema.inputs, schema.outputs) if item} & free
    if node.op_type == "Where":
        meant = {schema.inputs[1].type_str}
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):  # the lists name what goes in
        return [node.input[0]]
    found = []
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            if name and formal[min(index, len(formal) - 1)].type_str in meant:
                found.append(name)
    return found


def _is_partial(attributes: dict[str, Any]) -> bool:
    return attributes.get("start", 0) != 0 or "end" in attributes
