"""Quantised graphs that TensorRT does not take are refused before it is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.quantization import check_quantized, is_quantized
from detr_export.runtimes.errors import ArtifactError

HALF = TensorProto.FLOAT16


def convolution(
    scale: Any = 0.02,
    zero_point: int = 0,
    dtype: type = np.int8,
    scale_dtype: type = np.float16,
    bias: str = "float",
    opset: int = 19,
) -> onnx.ModelProto:
    """x (batch, 64, height, width) through a 3x3 convolution with quantised input and weights."""
    constants = {
        "scale": np.array(scale, dtype=scale_dtype),
        "zero": np.array(zero_point, dtype=dtype),
        "weights": np.random.default_rng(0).integers(0, 127, (64, 64, 3, 3)).astype(dtype),
        "scales": np.full(64, 0.01, dtype=scale_dtype),
        "zeros": np.full(64, zero_point, dtype=dtype),
        "bias": np.zeros(64, dtype=scale_dtype),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_int8"], name="quantize"),
        helper.make_node("DequantizeLinear", ["x_int8", "scale", "zero"], ["x_again"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["weights_again"], name="of_weights", axis=0),
        helper.make_node("Conv", ["x_again", "weights_again", "used_bias"], ["y"], name="convolution", pads=[1] * 4),
    ]
    if bias == "int32":
        constants |= {"bias": np.zeros(64, dtype=np.int32), "fine_scale": np.array(2e-4, dtype=scale_dtype)}
        nodes.insert(3, helper.make_node("DequantizeLinear", ["bias", "fine_scale"], ["used_bias"], name="of_bias"))
    else:
        constants["used_bias"] = constants.pop("bias")
    return made(
        nodes, constants, ["batch", 64, "height", "width"], opset, HALF if scale_dtype is np.float16 else TensorProto.FLOAT
    )


def made(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[Any], opset: int = 19, dtype: int = HALF
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, [None] * len(shape))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_graph_that_is_right() -> None:
    model = convolution()
    onnx.checker.check_model(model, full_check=True)
    assert is_quantized(model)
    check_quantized(model)


def test_other_graphs_are_none_of_its_business() -> None:
    model = made([helper.make_node("Relu", ["x"], ["y"])], {}, [1], opset=18)
    assert not is_quantized(model)
    check_quantized(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_point": 3}, "quantize has a zero point: quantise symmetrically"),
        ({"dtype": np.uint8}, "quantize has UINT8 where int8 is expected"),
        ({"scale": -0.02}, "quantize has a scale that is not positive and finite"),
        ({"scale": 0.0}, "quantize has a scale that is not positive and finite"),
        ({"scale": np.nan}, "quantize has a scale that is not positive and finite"),
        ({"bias": "int32"}, "of_bias dequantises an int32 bias: keep biases in fp16"),
        ({"scale_dtype": np.float32}, "quantize has an fp32 scale"),
        ({"opset": 17, "scale_dtype": np.float32}, "opset 17 has no fp16 scales, export with --opset 19 or later"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match="does not take this quantised graph") as caught:
        check_quantized(convolution(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_attention_in_int8() -> None:
    """The product of two values that were quantised; with weights it is fine."""
    constants = {"scale": np.array(0.02, dtype=np.float16), "zero": np.array(0, dtype=np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_int8"], name="quantize"),
        helper.make_node("DequantizeLinear", ["x_int8", "scale", "zero"], ["queries"], name="dequantize"),
        helper.make_node("Transpose", ["x_int8"], ["x_turned"], name="turn", perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["x_turned", "scale", "zero"], ["keys"], name="dequantize_turned"),
        helper.make_node("MatMul", ["queries", "keys"], ["y"], name="scores"),
    ]
    with pytest.raises(ArtifactError, match="scores is the product of an attention in int8"):
        check_quantized(made(nodes, constants, [1, 8, 8]))
    constants["weights"] = np.ones((8, 8), dtype=np.int8)
    nodes[2:4] = [helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["keys"], name="of_weights")]
    check_quantized(made(nodes, constants, [1, 8, 8]))


def test_many_problems_are_one_line() -> None:
    with pytest.raises(ArtifactError, match=r"; and 2 more$") as caught:
        check_quantized(convolution(zero_point=3, scale=-1.0))
    assert str(caught.value).count(";") == 3


def test_a_scale_that_is_computed() -> None:
    model = convolution()
    model.graph.node.insert(0, helper.make_node("Abs", ["scale"], ["computed"], name="make_scale"))
    model.graph.node[1].input[1] = "computed"
    with pytest.raises(ArtifactError, match="quantize has a scale that is computed"):
        check_quantized(model)
