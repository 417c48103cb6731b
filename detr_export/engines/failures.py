"""Where a failed build failed: the ONNX node that TensorRT names, and the PyTorch module that the node was traced in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx

from detr_export.engines.kernels import node_name
from detr_export.graphs.modules import module_of
from detr_export.runtimes.backends.tensorrt.api import Generation

_WORDS = re.compile(r"[\w./:-]*\w")  # what may be the name of a node
_NAMED = 3  # how many nodes a message names
# Lines that say nothing of the graph: where in TensorRT's source an error was noticed, and that there is no GPU.
_NOISE = re.compile(r"^(Invalid Node - .*|\[checkMacros\.cpp.*)$")
_SAYS_NOTHING = {"", "false"}  # the description of an operator that the parser does not have


def parser_failures(parser: Any, generation: Generation, model: onnx.ModelProto) -> list[str]:
    """What the parser does not read, an entry an error: `MatMul node_x, traced in encoder.layers.0: reason`."""
    found = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        reason = _reason(parser_error.desc(), parser_error.code().name)
        name = generation.failed_node(parser_error)
        nodes = [node for node in model.graph.node if node_name(node) == name] if name else []
        found.append(f"{_described(nodes[0])}: {reason}" if nodes else located(reason, model))
    return found


def located(reason: str, model: onnx.ModelProto) -> str:
    """TensorRT's reason, followed by what is known of the nodes that it names."""
    words = set(_WORDS.findall(reason))
    named = [node for node in model.graph.node if node_name(node) in words]
    return f"{reason} ({'; '.join(map(_described, named[:_NAMED]))})" if named else reason


def _described(node: onnx.NodeProto) -> str:
    module = module_of(node)
    return f"{node.op_type} {node_name(node)}" + (f", traced in {module}" if module else "")


def _reason(description: str, code: str) -> str:
    lines: Sequence[str] = [line for line in description.splitlines() if not _NOISE.match(line)]
    text = " ".join(" ".join(lines).split())
    return code.lower().replace("_", " ") if text in _SAYS_NOTHING else text
