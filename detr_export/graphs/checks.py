"""Rules for the structure of an exported graph: what deployment runtimes cannot handle is refused here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from detr_export.graphs.editing import opset_of
from detr_export.runtimes.errors import ArtifactError, first_line

# Control flow, operators whose output size depends on values, and sequences: engine builders reject them or get them wrong.
# CumSum: TensorRT before 10.8 compiles it to a loop; from 10.8 on, two over one tensor, each along its own axis, are
# reported to give the same output (NVIDIA/TensorRT issues 4513 and 4551).
_FORBIDDEN = ("If", "Loop", "Scan", "NonZero", "Unique", "Compress", "CumSum")
_FORBIDDEN_PREFIXES = ("Sequence", "SplitToSequence", "ConcatFromSequence", "Optional", "Random")


def check_graph(model: onnx.ModelProto, layer_norms: int, opset: int, inputs: dict[str, tuple[str | int, ...]]) -> None:
    """Checks the structure of an exported model.

    Args:
        model: the model, with its weights.
        layer_norms: how many LayerNormalization nodes the transformer must have, one for each time it calls one.
        opset: the version of the default operator set that was asked for.
        inputs: name and dimensions, a string for one that varies.

    Raises:
        ArtifactError: says which rule is broken.
    """
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ArtifactError(f"the graph is not valid ONNX: {first_line(error)}") from error
    given = opset_of(model)
    if given != opset:
        raise ArtifactError(f"the exporter produced opset {given} instead of {opset}; choose an opset from 17 to 25")
    domains = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if domains or model.functions:
        raise ArtifactError(f"the graph uses operators outside ONNX's own set: {', '.join(domains) or 'local functions'}")
    operators = Counter(node.op_type for node in model.graph.node)
    forbidden = sorted(name for name in operators if name in _FORBIDDEN or name.startswith(_FORBIDDEN_PREFIXES))
    if forbidden:
        raise ArtifactError(f"the graph holds {', '.join(forbidden)}, which deployment runtimes do not support")
    norms = operators["LayerNormalization"]
    if norms < layer_norms:  # there may be more: a timm backbone can have its own
        raise ArtifactError(f"the graph holds {norms} LayerNormalization nodes instead of {layer_norms}: some were split")
    absent = sorted(set(inputs) - {value.name for value in model.graph.input})
    if absent:
        raise ArtifactError(f"the graph has no input {', '.join(absent)}")
    for value in model.graph.input:
        dims = dims_of(value)
        if dims != inputs.get(value.name):
            raise ArtifactError(f"input {value.name} has dimensions {dims} instead of {inputs.get(value.name)}")
    for name, array in _constants(model.graph):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ArtifactError(f"the constant {name!r} holds values that are not finite")


def dims_of(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    """The dimensions of an input or output, a string for one that varies."""
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                yield node.output[0], numpy_helper.to_array(attribute.t)
            elif attribute.HasField("f") or attribute.floats:
                yield node.output[0], np.array([attribute.f, *attribute.floats])


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes by operator, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())
