"""Runs nodes that the project builds, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from onnx import helper

from detr_export.graphs.end_to_end.building import Nodes, Value


def run(nodes: Nodes, outputs: Mapping[str, Value], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of nodes whose inputs have the names of the feeds."""
    for name, value in outputs.items():
        nodes.name_output(value, name)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in feeds.items()
    ]
    results = [helper.make_value_info(name, helper.make_tensor_type_proto(0, None)) for name in outputs]
    for result in results:
        result.ClearField("type")
    graph = helper.make_graph(nodes.nodes, "nodes", inputs, results, nodes.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
