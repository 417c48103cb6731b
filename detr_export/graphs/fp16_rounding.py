"""What an fp16 graph gives where fp16 is really computed, found out on a CPU.

ONNX Runtime's CPU has few fp16 kernels. It computes the nodes of an fp16 graph in fp32 and drops the rounding between them:
a value of 70000 stays 70000. A GPU multiplies fp16 values, adds in fp32 and rounds each result to fp16. `rounding_twin`
writes that out: an fp32 graph that casts every result to fp16 and back, which ONNX Runtime leaves as it is, and that reports
the largest magnitude before each rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.editing import replace_nodes
from detr_export.graphs.fp16 import LARGEST
from detr_export.runtimes.session import Session

MAGNITUDES = "largest_magnitudes"  # output of the twin: float32 (N,), one for each name of `rounding_twin`'s list
# They move values without changing them, or, as a maximum does, choose among them.
_MOVES = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Concat", "Split", "Expand", "Identity", "Flatten"),
    *("Relu", "MaxPool", "Resize"),
}


def rounding_twin(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Writes the rounding of a typed fp16 graph out in fp32.

    Args:
        model: from `to_fp16`.

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
