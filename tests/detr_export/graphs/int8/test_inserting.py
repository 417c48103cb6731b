"""The int8 graph: what is in it, what ONNX Runtime's CPU makes of it, and how far it is from the float graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from detr_export.graphs.int8.calibration import CalibratedGraph
from detr_export.graphs.int8.checks import check_int8
from detr_export.graphs.int8.layers import CONVOLUTIONS, int8_layers
from detr_export.graphs.int8.watching import Feeds, open_graph
from detr_export.runtimes.errors import ArtifactError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


@pytest.mark.parametrize("scope", ["encoder", "all"])
def test_onnxruntime_computes_every_layer_in_int8(
    scope: str, encoder: CalibratedGraph, calibrated: CalibratedGraph, tmp_path: Path
) -> None:
    graph = encoder if scope == "encoder" else calibrated
    layers = int8_layers(graph.layers)
    ran = [node.op_type for node in optimised(graph.int8(), tmp_path).graph.node]
    convolutions = [layer for layer in layers if layer.op_type in CONVOLUTIONS]
    assert ran.count("QLinearConv") == len(convolutions)
    every = sum(node.op_type == "Conv" for node in graph.model.graph.node)
    assert ran.count("Conv") + ran.count("FusedConv") == every - len(convolutions)
    assert ran.count("MatMulIntegerToFloat") == len(layers) - len(convolutions)
    assert ran.count("QLinearAdd") > 1  # the sums of the residual blocks


def test_what_the_file_holds(calibrated: CalibratedGraph) -> None:
    model = calibrated.int8()
    layers = int8_layers(calibrated.layers)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    makers = {node.output[0]: node for node in model.graph.node}
    assert all(tensor.data_type != TensorProto.INT32 for tensor in constants.values())
    for layer in layers:
        weight = makers[nodes[layer.name].input[1]]
        stored = numpy_helper.to_array(constants[weight.input[0]])
        scales = numpy_helper.to_array(constants[weight.input[1]])
        assert stored.dtype == np.int8
        assert scales.shape == (layer.outputs,)
        assert np.abs(stored.astype(int)).max() == 127
        exact = next(numpy_helper.to_array(item) for item in calibrated.model.graph.initializer if item.name == layer.weight)
        (axis,) = [item.i for item in weight.attribute if item.name == "axis"]
        shape = [-1 if index == axis else 1 for index in range(stored.ndim)]
        assert np.abs(stored * scales.reshape(shape) - exact).max() <= 0.51 * scales.max()
        if layer.op_type in CONVOLUTIONS:
            assert nodes[layer.name].input[2:] == [name for name in nodes[layer.name].input[2:] if name in constants]
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            assert not any(numpy_helper.to_array(constants[name]).any() for name in node.input[2:])


def test_each_reader_has_its_own_pair(calibrated: CalibratedGraph) -> None:
    graph = calibrated.int8().graph
    read = [name for node in graph.node for name in node.input]
    pairs = [node for node in graph.node if node.op_type == QUANTIZE]
    assert all(read.count(node.output[0]) == 1 for node in pairs)
    described = [(node.input[0], str(node.attribute)) for node in pairs]
    assert len(set(described)) == len(described)


def test_what_is_float_reads_the_float_value(encoder: CalibratedGraph) -> None:
    """A sum behind a norm takes what the norm gives, and not what a product takes of it."""
    before, after = (
        {node.name: [*node.input] for node in model.graph.node if node.op_type == "Add" and "encoder.layers" in str(node)}
        for model in (encoder.model, encoder.int8())
    )
    assert len(before) > 8
    assert after == before


def test_the_backbone_is_close_to_the_float_one(encoder: CalibratedGraph, feeds: list[Feeds]) -> None:
    """Behind the transformer of a seeded model nothing is close: its attentions are too sharp."""
    projection = next(layer for layer in encoder.layers if layer.module.endswith("input_projection"))
    modules = [layer.module for layer in encoder.layers]
    found = {}
    for name, model in (("float", encoder.model), ("int8", encoder.int8()), ("less", encoder.int8(modules[4:]))):
        twin = copy.deepcopy(model)
        node = next(node for node in encoder.model.graph.node if node.name == projection.name)
        del twin.graph.output[:]
        twin.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
        (found[name],) = open_graph(twin).run(None, dict(feeds[0]))
    noise = {name: np.square(value - found["float"]).mean() for name, value in found.items()}
    power = np.square(found["float"]).mean()
    assert 0 < noise["less"] < noise["int8"] < power / 100


def test_the_model_that_it_is_made_from_stays_as_it_is(encoder: CalibratedGraph) -> None:
    before = encoder.model.SerializeToString(deterministic=True)
    encoder.int8()
    assert encoder.model.SerializeToString(deterministic=True) == before


def constant_of(model: onnx.ModelProto, index: int, position: int) -> TensorProto:
    """The constant at a position of the inputs of the n-th DequantizeLinear of weights."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == DEQUANTIZE and node.input[0] in constants]
    return constants[nodes[index].input[position]]


def uint8(model: onnx.ModelProto) -> None:
    tensor = constant_of(model, 0, 0)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).view(np.uint8), tensor.name))
    zero = constant_of(model, 0, 2)
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero).view(np.uint8), zero.name))


def one_scale(model: onnx.ModelProto) -> None:
    for position in (1, 2):
        tensor = constant_of(model, 0, position)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[0], tensor.name))


def zero_scale(model: onnx.ModelProto) -> None:
    tensor = constant_of(model, 1, 1)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0), tensor.name))


def zero_point(model: onnx.ModelProto) -> None:
    tensor = constant_of(model, 1, 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int8(3), tensor.name))


def float_values(model: onnx.ModelProto) -> None:
    makers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    node = next(node for node in convolutions if makers.get(node.input[1], node).op_type == DEQUANTIZE)
    node.input[0] = makers[makers[node.input[0]].input[0]].input[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (uint8, "the weights of .* are not stored as int8"),
        (one_scale, r"have \[\] scales, not one for each channel"),
        (zero_scale, "a scale that is not positive and finite"),
        (zero_point, "has a zero point"),
        (float_values, "does not read int8 values and weights"),
    ],
)
def test_a_damaged_graph_is_refused(
    damage: Callable[[onnx.ModelProto], None], message: str, encoder: CalibratedGraph
) -> None:
    model = copy.deepcopy(encoder.int8())
    layers = int8_layers(encoder.layers)
    check_int8(model, layers)
    damage(model)
    with pytest.raises(ArtifactError, match=message):
        check_int8(model, layers)
