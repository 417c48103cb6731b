"""Whether TensorRT takes a quantised graph, and computes it in int8 without losing its fused attentions.

A quantised graph has a QuantizeLinear and a DequantizeLinear around what is int8 (QDQ). Seen in TensorRT-RTX 1.7: its parser
refuses zero points, uint8, scales that are not positive, and int32 biases behind a DequantizeLinear; with fp32 around the
int8 products no attention is fused. NVIDIA's documents say that fused int8 attention ends at 512 places, and DETR's encoder
has 850 at 800x1066.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from detr_export.graphs.editing import opset_of
from detr_export.runtimes.errors import ArtifactError

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FIRST_FP16_SCALE = 19  # opset whose scales may be fp16
_NAMED = 3  # how many problems an error message names


def check_quantized(model: onnx.ModelProto) -> None:
    """Checks the quantised nodes of a graph; one without any passes.

    Raises:
        ArtifactError: names the nodes that break a rule, and which.
    """
    problems = list(_problems(model))
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ArtifactError(f"TensorRT does not take this quantised graph: {'; '.join(problems[:_NAMED])}{more}")


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a graph has quantised nodes."""
    return any(node.op_type in (_QUANTIZE, _DEQUANTIZE) for node in model.graph.node)


def _problems(model: onnx.ModelProto) -> Iterator[str]:
    if not is_quantized(model):
        return
    if opset_of(model) < _FIRST_FP16_SCALE:
        yield f"opset {opset_of(model)} has no fp16 scales, export with --opset {_FIRST_FP16_SCALE} or later"
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    typed = onnx.shape_inference.infer_shapes(model).graph
    dtypes = {value.name: value.type.tensor_type.elem_type for value in [*typed.input, *typed.value_info, *typed.output]}
    dtypes |= {name: tensor.data_type for name, tensor in constants.items()}
    made_by = {node.output[0]: node for node in graph.node if node.op_type == _DEQUANTIZE}
    activations = {name for name, node in made_by.items() if node.input[0] not in constants}
    for node in graph.node:
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            yield from _problems_of_scaling(node, constants, dtypes)
        elif node.op_type == "MatMul" and activations.issuperset(node.input):
            yield f"{node.name} is the product of an attention in int8, which is fused up to 512 places only: keep it fp16"


def _problems_of_scaling(node: onnx.NodeProto, constants: dict[str, TensorProto], dtypes: dict[str, int]) -> Iterator[str]:
    """What is wrong with a QuantizeLinear or a DequantizeLinear."""
    value, scale, *zero_point = node.input
    quantised = dtypes.get(node.output[0] if node.op_type == _QUANTIZE else value)
    if quantised == TensorProto.INT32:
        yield f"{node.name} dequantises an int32 bias: keep biases in fp16"
    elif quantised != TensorProto.INT8:
        yield f"{node.name} has {TensorProto.DataType.Name(quantised or 0)} where int8 is expected"
    if scale not in constants:
        yield f"{node.name} has a scale that is computed: scales are constants"
    else:
        scales = numpy_helper.to_array(constants[scale]).astype(np.float32)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            yield f"{node.name} has a scale that is not positive and finite"
        if dtypes[scale] != TensorProto.FLOAT16:
            yield f"{node.name} has an fp32 scale, and with fp32 around int8 no attention is fused: make scales fp16"
    for name in filter(None, zero_point):
        if name not in constants or numpy_helper.to_array(constants[name]).any():
            yield f"{node.name} has a zero point: quantise symmetrically"
