"""Every other form of a file through the real compiler, and what the deployed transformer costs in kernels."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from detr_export.graphs.tensorrt import rewrite_for_8_5
from tests.rtx.compiler import Compiler
from tests.rtx.forms import ATTENTIONS, MakeFile, check, compiled, make_file  # noqa: F401

FORMS: dict[str, dict[str, Any]] = {
    "no_mask": {"pixel_mask": False},
    "uint8": {"input": "uint8"},
    "uint8_no_mask": {"input": "uint8", "pixel_mask": False},
    "opset_17": {"opset": 17},
    "opset_23": {"opset": 23},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form(form: str, precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:  # noqa: F811
    file = make_file("no_timm", f"{form}-{precision}", precision=precision, **FORMS[form])
    check(compiled(file, rtx_compiler), file, fused=ATTENTIONS if precision == "fp16" else 0)


def test_the_attention_that_is_an_output_is_not_fused(make_file: MakeFile, rtx_compiler: Compiler) -> None:  # noqa: F811
    for precision, fused in (("fp32", 0), ("fp16", ATTENTIONS - 1)):
        file = make_file("no_timm", f"attentions-{precision}", precision=precision, attentions=True)
        check(compiled(file, rtx_compiler), file, fused=fused)


def test_a_graph_that_is_not_simplified(make_file: MakeFile, rtx_compiler: Compiler) -> None:  # noqa: F811
    file = make_file("no_timm", "not_simplified", simplify=False)
    check(compiled(file, rtx_compiler), file, fused=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_form_for_8_5(precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:  # noqa: F811
    """Its LayerNormalizations are written out."""
    file = make_file("panoptic", f"8_5-{precision}", precision=precision, opset=17)
    onnx.save(rewrite_for_8_5(onnx.load(str(file))), str(file))
    check(compiled(file, rtx_compiler), file, fused=ATTENTIONS if precision == "fp16" else 0)


def test_panoptic_of_bytes_in_batches(make_file: MakeFile, rtx_compiler: Compiler) -> None:  # noqa: F811
    file = make_file("panoptic", "uint8", precision="fp16", input="uint8")
    check(compiled(file, rtx_compiler, max_batch=4), file, profiles=6)


@pytest.mark.parametrize(("stack", "most"), [("encoder_layers", 8), ("decoder_layers", 12)])
def test_what_a_layer_costs(stack: str, most: int, make_file: MakeFile, rtx_compiler: Compiler) -> None:  # noqa: F811
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
