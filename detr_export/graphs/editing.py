"""Changes to an ONNX graph that several files make: its nodes replaced or sorted, and which operator set it uses."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import onnx


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set in a model; 0 when the model names none."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Gives a graph other nodes, in this order; they may be nodes that it has now."""
    copies = [copy.deepcopy(node) for node in nodes]  # before the graph is emptied, which `nodes` may come from
    del graph.node[:]
    graph.node.extend(copies)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts every node after the nodes whose outputs it uses; nodes that are in order keep it."""
    producers = {name: node for node in graph.node for name in node.output}
    placed: set[str] = set()
    ordered: list[onnx.NodeProto] = []

    def place(node: onnx.NodeProto) -> None:
        if node.output[0] in placed:
            return
        placed.add(node.output[0])
        for name in node.input:
            if name in producers:
                place(producers[name])
        ordered.append(node)

    for node in graph.node:
        place(node)
    replace_nodes(graph, ordered)
