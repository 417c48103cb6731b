"""Runs nodes that the project builds, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from detr_export.graphs.end_to_end.building import Nodes, Value


def model_of(nodes: Nodes, outputs: Mapping[str, Value], feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A model of nodes whose inputs have the names and dtypes of the feeds, and any sizes."""
    for name, value in outputs.items():
        nodes.name_output(value, name)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in feeds.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes.nodes, "nodes", inputs, results, nodes.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(nodes: Nodes, outputs: Mapping[str, Value], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of nodes in ONNX Runtime, by name."""
    model = model_of(nodes, outputs, feeds)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
