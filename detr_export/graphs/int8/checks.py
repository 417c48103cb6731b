"""What holds for every int8 graph that is written."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from detr_export.graphs.int8.inserting import DEQUANTIZE, QUANTIZE
from detr_export.graphs.int8.layers import Layer
from detr_export.graphs.quantization import check_quantized
from detr_export.runtimes.errors import ArtifactError, first_line


def check_int8(model: onnx.ModelProto, layers: Collection[Layer]) -> None:
    """Checks a graph that `insert` made, and one with fp16 around its int8 also by TensorRT's rules.

    Raises:
        ArtifactError: the graph is not valid; a layer's input or weights are not int8; its weights do not have a scale for
            each channel; a scale is not positive and finite; there is a zero point, or an integer bias.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference have an error class each
        raise ArtifactError(f"the int8 graph is not valid ONNX: {first_line(error)}") from error
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    nodes = {node.name: node for node in model.graph.node}
    for layer in layers:
        node = nodes[layer.name]
        value, weight = (makers.get(name) for name in node.input[:2])
        if value is None or weight is None or {value.op_type, weight.op_type} != {DEQUANTIZE}:
            raise ArtifactError(f"{layer.module} does not read int8 values and weights")
        stored, scales = constants.get(weight.input[0]), constants[weight.input[1]]
        if stored is None or stored.data_type != TensorProto.INT8:
            raise ArtifactError(f"the weights of {layer.module} are not stored as int8")
        if list(scales.dims) != [layer.outputs]:
            raise ArtifactError(f"the weights of {layer.module} have {list(scales.dims)} scales, not one for each channel")
        if any(name in makers and makers[name].op_type == DEQUANTIZE for name in node.input[2:]):
            raise ArtifactError(f"the bias of {layer.module} is quantised")
    halves = False
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            scale = numpy_helper.to_array(constants[node.input[1]])
            halves = halves or scale.dtype == np.float16
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                raise ArtifactError(f"{node.name} has a scale that is not positive and finite")
            if any(numpy_helper.to_array(constants[name]).any() for name in node.input[2:]):
                raise ArtifactError(f"{node.name} has a zero point")
    if halves:
        check_quantized(model)
