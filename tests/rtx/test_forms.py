"""Every other form of a file through the real compiler, and what the deployed transformer costs in kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.editing import replace_nodes
from detr_export.graphs.tensorrt import rewrite_for_8_5
from detr_export.runtimes.mask_head import mask_head_file
from tests.rtx.compiler import Compiler
from tests.rtx.forms import ATTENTIONS, MakeFile, check, compiled

INT8 = TensorProto.INT8
FORMS: dict[str, dict[str, Any]] = {
    "no_mask": {"pixel_mask": False},
    "uint8": {"input": "uint8"},
    "uint8_no_mask": {"input": "uint8", "pixel_mask": False},
    "opset_17": {"opset": 17},
    "opset_23": {"opset": 23},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form(form: str, precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    file = make_file("no_timm", f"{form}-{precision}", precision=precision, **FORMS[form])
    check(compiled(file, rtx_compiler), file, fused=ATTENTIONS if precision == "fp16" else 0)


def test_the_attention_that_is_an_output_is_not_fused(make_file: MakeFile, rtx_compiler: Compiler) -> None:
    for precision, fused in (("fp32", 0), ("fp16", ATTENTIONS - 1)):
        file = make_file("no_timm", f"attentions-{precision}", precision=precision, attentions=True)
        check(compiled(file, rtx_compiler), file, fused=fused)


def test_a_graph_that_is_not_simplified(make_file: MakeFile, rtx_compiler: Compiler) -> None:
    file = make_file("no_timm", "not_simplified", simplify=False)
    check(compiled(file, rtx_compiler), file, fused=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_form_for_8_5(precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    """Its LayerNormalizations are written out."""
    file = make_file("panoptic", f"8_5-{precision}", precision=precision, opset=17, one_graph=True)
    onnx.save(rewrite_for_8_5(onnx.load(str(file))), str(file))
    check(compiled(file, rtx_compiler), file, fused=ATTENTIONS if precision == "fp16" else 0)


def test_a_mask_head_for_8_5(make_file: MakeFile) -> None:
    rewrite_for_8_5(
        onnx.load(str(mask_head_file(make_file("panoptic", "8_5", opset=17))))
    )  # raises where 8.5 does not read it


def test_panoptic_of_bytes_in_batches(make_file: MakeFile, rtx_compiler: Compiler) -> None:
    file = make_file("panoptic", "uint8", precision="fp16", input="uint8")
    made = compiled(file, rtx_compiler, max_batch=4)
    check(made, file, profiles=6)
    assert made.mask_head is not None
    assert len(made.mask_head.profiles) == 3  # single images: the mask head runs for one at a time


def test_panoptic_in_one_graph(make_file: MakeFile, rtx_compiler: Compiler) -> None:
    file = make_file("panoptic", "one_graph", precision="fp16", one_graph=True)
    check(compiled(file, rtx_compiler, max_batch=4), file, profiles=6)


@pytest.mark.parametrize(("stack", "most"), [("encoder_layers", 8), ("decoder_layers", 12)])
def test_what_a_layer_costs(stack: str, most: int, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    """The difference between two layers and three, in kernels. No copy is among them."""
    reports = []
    for layers in (2, 3):
        file = make_file("no_timm", "fp16", {stack: layers}, precision="fp16")
        reports.append(compiled(file, rtx_compiler).report)
    two, three = reports
    assert three["kernels"] - two["kernels"] <= most
    assert three["fused_attentions"] - two["fused_attentions"] == (1 if stack == "encoder_layers" else 2)
    assert three["copies"] == two["copies"]
    assert three["casts"] == two["casts"]


def test_a_quantised_graph(make_file: MakeFile, rtx_compiler: Compiler) -> None:
    """Convolutions in int8, with fp16 around them: the compiler takes the graph, and attentions stay fused."""
    file = make_file("no_timm", "quantised", precision="fp16", opset=23)
    model = onnx.load(str(file))
    quantised = quantise_convolutions(model)
    onnx.save(model, str(file))
    made = compiled(file, rtx_compiler)
    assert made.sidecar.precision == "int8"
    assert quantised > 1
    assert made.attestation["convolutions"]["int8"] == 3 * quantised
    assert made.attestation["attentions"] == {"fp16": 3 * ATTENTIONS}
    assert made.report["fused_attentions"] == ATTENTIONS


def quantise_convolutions(model: onnx.ModelProto) -> int:
    """Puts QuantizeLinear and DequantizeLinear before each convolution of a multiple of 32 channels. Returns how many."""
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        kernel = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if kernel is not None and kernel.shape[1] % 32 == 0:
            name = f"quantised_{count}"
            scale = np.abs(kernel).max().astype(np.float32) / 127
            constants = {
                "scale": np.array(0.05, dtype=np.float16),
                "weight": np.rint(kernel.astype(np.float32) / scale).astype(np.int8),
                "weight_scale": scale.astype(np.float16),
            }
            graph.initializer.extend(numpy_helper.from_array(value, f"{name}_{part}") for part, value in constants.items())
            nodes += [
                helper.make_node("QuantizeLinear", [node.input[0], f"{name}_scale"], [f"{name}_int8"], output_dtype=INT8),
                helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [f"{name}_x"]),
                helper.make_node("DequantizeLinear", [f"{name}_weight", f"{name}_weight_scale"], [f"{name}_w"]),
            ]
            node.input[0], node.input[1] = f"{name}_x", f"{name}_w"
            count += 1
        nodes.append(node)
    replace_nodes(graph, nodes)
    return count
