"""What an fp16 graph gives where fp16 is really computed, found out on a CPU.

ONNX Runtime's CPU has few fp16 kernels. It computes the nodes of an fp16 graph in fp32 and drops the rounding between them:
a value of 70000 stays 70000. A GPU multiplies fp16 values, adds in fp32 and rounds each result to fp16. `rounding_twin`
writes that out: an fp32 graph that casts every result to fp16 and back, which ONNX Runtime leaves as it is, and that reports
the largest magnitude before each rounding.

Some fused attention kernels add in fp16, too (NVIDIA/TensorRT 4397). On request the twin does so in the products of two
computed values, which are those of the attentions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.editing import replace_nodes
from detr_export.graphs.fp16 import LARGEST, TENSOR_CORE_DEPTH
from detr_export.runtimes.session import Session

MAGNITUDES = "largest_magnitudes"  # output of the twin: float32 (N,), one for each name of `rounding_twin`'s list
# They move values without changing them, or, as a maximum does, choose among them.
_MOVES = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Concat", "Split", "Expand", "Identity", "Flatten"),
    *("Relu", "MaxPool", "Resize"),
}


def rounding_twin(model: onnx.ModelProto, accumulates: bool = False) -> tuple[onnx.ModelProto, list[str]]:
    """Writes the rounding of a typed fp16 graph out in fp32.

    Args:
        model: from `to_fp16`.
        accumulates: attentions also add in fp16.

    Returns:
        A model whose inputs and outputs are fp32 where those of `model` are fp16, with one more output, `MAGNITUDES`, and
        the names of the nodes that these belong to.
    """
    twin = copy.deepcopy(model)
    graph = twin.graph
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    half = {
        value.name
        for value in [*typed.input, *typed.value_info, *typed.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in [*graph.input, *graph.output]:
        if value.name in half:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]

    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in half:
            nodes += _rounding(value.name, f"{value.name}_rounded")
    inputs = {value.name for value in graph.input if value.name in half}
    watched: list[str] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = f"{name}_rounded" if name in inputs else name
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
        narrows = node.op_type == "Cast" and node.output[0] in half
        if narrows:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in _MOVES:
            continue
        for index, name in enumerate(node.output):
            if name in half:
                node.output[index] = f"{name}_exact"
                nodes += [
                    *_rounding(node.output[index], name),
                    helper.make_node("Abs", [node.output[index]], [f"{name}_magnitude"]),
                    helper.make_node("ReduceMax", [f"{name}_magnitude"], [f"{name}_largest"], keepdims=0),
                    helper.make_node("Reshape", [f"{name}_largest", "one_element"], [f"{name}_row"]),
                ]
                watched.append(node.name)
    if accumulates:
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*typed.output, *typed.value_info]}
        constants = {tensor.name for tensor in graph.initializer}
        adding = {
            node.name: ranks[node.output[0]]
            for node in typed.node
            if node.op_type == "MatMul" and node.output[0] in half and constants.isdisjoint(node.input)
        }
        nodes = [
            part for node in nodes for part in (_added_in_fp16(node, adding[node.name]) if node.name in adding else [node])
        ]
    rows = [node.output[0] for node in nodes if node.output[0].endswith("_row") and node.op_type == "Reshape"]
    nodes.append(helper.make_node("Concat", rows, [MAGNITUDES], axis=0))
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "one_element"))
    graph.output.append(helper.make_tensor_value_info(MAGNITUDES, TensorProto.FLOAT, [len(rows)]))
    replace_nodes(graph, nodes)
    return twin, watched


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], [f"{target}_fp16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{target}_fp16"], [target], to=TensorProto.FLOAT),
    ]


def _added_in_fp16(node: onnx.NodeProto, rank: int) -> list[onnx.NodeProto]:
    """Nodes that compute a MatMul of two values of this rank, and round the sum each time that a part was added to it."""
    left, right = node.input
    depth = TENSOR_CORE_DEPTH
    made: list[onnx.NodeProto] = []

    def make(operator: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{node.output[0]}_part_{len(made)}"
        made.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def integers(*values: int) -> str:
        return make("Constant", [], value_ints=values)

    # Zeros make the length of the sum a multiple of the depth.
    length = make("Shape", [left], start=-1)
    missing = make("Mod", [make("Neg", [length]), integers(depth)])
    left = make("Pad", [left, make("Concat", [integers(*[0] * (2 * rank - 1)), missing], axis=0)])
    right = make("Pad", [right, make("Concat", [integers(*[0] * (2 * rank - 2)), missing, integers(0)], axis=0)])

    # The parts get an axis of their own, and a loop adds them up.
    batch_rows, columns = make("Shape", [left], end=-1), make("Shape", [right], start=-1)
    batch = make("Shape", [right], end=-2)
    left = make("Reshape", [left, make("Concat", [batch_rows, integers(-1, depth)], axis=0)])
    right = make("Reshape", [right, make("Concat", [batch, integers(-1, depth), columns], axis=0)])
    zeros = make("ConstantOfShape", [make("Concat", [batch_rows, columns], axis=0)])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["some", "others"], ["product"]),
            helper.make_node("Add", ["total", "product"], ["sum"]),
            *_rounding("sum", "new_total"),
        ],
        "added_in_fp16",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("total", "some", "others")],
        [helper.make_tensor_value_info("new_total", TensorProto.FLOAT, None)],
    )
    axes = [rank - 1, rank - 2]
    scan = helper.make_node(
        "Scan", [zeros, left, right], [node.output[0]], node.name, body=body, num_scan_inputs=2, scan_input_axes=axes
    )
    return [*made, scan]


class Watched(Session):
    """A session of a twin that keeps the largest magnitudes of all its runs.

    Args:
        session: of a file with the twin; this one closes it.
        names: of the nodes, from `rounding_twin`.
    """

    def __init__(self, session: Session, names: list[str]) -> None:
        self._session, self._names = session, names
        self._largest = np.zeros(len(names), dtype=np.float32)
        self.inputs = session.inputs
        self.outputs = tuple(spec for spec in session.outputs if spec.name != MAGNITUDES)
        self.metadata = session.metadata

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._session.run(inputs)
        self._largest = np.maximum(self._largest, outputs.pop(MAGNITUDES))  # a NaN stays
        return outputs

    def close(self) -> None:
        self._session.close()

    @property
    def largest(self) -> tuple[float, str]:
        """The largest magnitude so far and the node it came from; NaN is larger than any number."""
        index = int(np.argmax(self._largest))
        return float(self._largest[index]), self._names[index]

    @property
    def overflows(self) -> list[str]:
        """Nodes whose results fp16 could not hold, in the graph's order."""
        return [name for name, size in zip(self._names, self._largest, strict=True) if not size <= LARGEST]
