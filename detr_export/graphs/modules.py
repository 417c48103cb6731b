"""Which PyTorch module each node of a graph comes from, so that a message can name it; a node's own name is a number."""

from __future__ import annotations

import re

import onnx

_KEY = "detr_export.module"  # of an entry in a node's metadata
_SCOPES = "pkg.torch.onnx.name_scopes"  # what torch.onnx.export writes: all modules that a node lies in, and its operation


def module_of(node: onnx.NodeProto) -> str | None:
    """The PyTorch module of a node, such as "model.encoder.layers.3.self_attn.q_proj"; None if the graph does not say.

    Graphs below opset 18 do not: PyTorch's exporter converts them at the end, and loses what it noted.
    """
    return _entry(node, _KEY)


def keep_modules(model: onnx.ModelProto, wrapper: str) -> None:
    """Replaces what PyTorch's exporter notes at each node by the node's module.

    The exporter's own notes hold the stack of the program that exported, with its paths, and are larger than the graph.

    Args:
        model: from torch.onnx.export; it is changed.
        wrapper: begins the names of the modules of the checkpoint, because the traced module wraps them.
    """
    for node in model.graph.node:
        scopes = re.findall(r"'([^']*)'", _entry(node, _SCOPES) or "")
        del node.metadata_props[:]
        if len(scopes) > 1 and scopes[-2].startswith(wrapper):
            node.metadata_props.add(key=_KEY, value=scopes[-2].removeprefix(wrapper))


def carry_modules(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Notes the modules of one graph at the nodes of another that have the same names."""
    modules = {node.name: module for node in source.graph.node if (module := module_of(node)) is not None}
    for node in target.graph.node:
        if node.name in modules and module_of(node) is None:
            node.metadata_props.add(key=_KEY, value=modules[node.name])


def _entry(node: onnx.NodeProto, key: str) -> str | None:
    return next((item.value for item in node.metadata_props if item.key == key), None)
