"""Figures of compiled kernels, on real records and on documents of each version."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from detr_export.engines.kernels import attentions_of, computes_products, is_kernel, kernel_report, node_name
from detr_export.engines.records import Kernel, RecordTensor, kernels_of_inspector, kernels_of_log

DATA = Path(__file__).parent / "data"
HALF = RecordTensor("x", "fp16", (1, 8))
FLOAT = RecordTensor("y", "fp32", (1, 8))


def log(name: str) -> list[Kernel]:
    return kernels_of_log([(DATA / f"{name}.log").read_text(encoding="utf-8")])


def kernel(name: str, kind: str = "kgen", inputs: tuple[RecordTensor, ...] = (HALF,), **changes: object) -> Kernel:
    values = {"constants": (), "outputs": (HALF,), "nodes": (), "tactic": "", "profile": 0, **changes}
    return Kernel(name, kind, inputs, **values)  # type: ignore[arg-type]


def graph(*nodes: tuple[str, str, list[str], str]) -> onnx.ModelProto:
    """From (operator, name, inputs, output)."""
    made = [helper.make_node(operator, inputs, [output], name=name) for operator, name, inputs, output in nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info(nodes[-1][3], TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(made, "g", [x], [y]))


def attention(scores: str, softmax: str, values: str) -> list[tuple[str, str, list[str], str]]:
    return [
        ("MatMul", scores, ["x", "x"], f"{scores}_out"),
        ("Cast", f"{scores}_cast", [f"{scores}_out"], f"{scores}_wide"),
        ("Add", f"{scores}_masked", [f"{scores}_wide", "x"], f"{scores}_sum"),
        ("Softmax", softmax, [f"{scores}_sum"], f"{softmax}_out"),
        ("Cast", f"{softmax}_cast", [f"{softmax}_out"], f"{softmax}_narrow"),
        ("MatMul", values, [f"{softmax}_narrow", "x"], "x2"),
    ]


# The names that the real records have, with one attention that they do not hold.
MODEL = graph(
    *attention("node_matmul", "node_softmax", "node_matmul_1"),
    *attention("node_matmul_4", "node_softmax_2", "node_matmul_5"),
    *attention("node_matmul_98", "node_softmax_98", "node_matmul_99"),
)


def test_figures_of_an_fp16_log() -> None:
    report = kernel_report(log("rtx_fp16"), MODEL, plan_bytes=4_000_000)
    assert (report.records, report.kernels) == (23, 21)  # without a copy of shapes and a call that computes shapes
    assert sum(report.by_kind.values()) == report.records
    assert (report.attentions, report.fused_attentions, report.products) == (3, 2, 6)
    assert report.casts == 2  # the image to fp16, the masks to fp32
    assert report.copies == 3  # a transpose, a slice, and a kernel that fills a buffer
    assert report.fp32 == 4  # two that compute the position encoding, the last box layer, and the sigmoid behind it
    assert json.loads(json.dumps(report.to_dict()))["by_kind"] == dict(report.by_kind)
    kinds = "11 kgen, 4 runtime_fusion, 3 gemm, 2 correlation, 1 ShapeHostToDevice, 1 shape_call, 1 maxpool"
    assert report.summary().splitlines() == [
        f"21 kernels (23 records: {kinds})",
        "2 of 3 attentions are one kernel each; 4 kernels in fp32, 2 casts, 3 copies",
        f"weights {report.weight_bytes / 1e6:.1f} MB, plan 4.0 MB",
    ]


def test_figures_of_an_fp32_log() -> None:
    """The same attention takes a kernel for each product, one for the softmax, and copies in front of the products."""
    report = kernel_report(log("rtx_fp32"), MODEL)
    assert (report.attentions, report.fused_attentions) == (3, 0)
    assert (report.kernels, report.casts, report.copies, report.fp32) == (11, 0, 4, 7)
    assert report.plan_bytes is None
    assert "plan" not in report.summary()


def test_weights_are_counted_once() -> None:
    weights = (RecordTensor("w", "fp16", (64, 32)), RecordTensor("b", "fp32", (32,)))
    kernels = [kernel("a", constants=weights), kernel("b", constants=weights[:1]), kernel("c", constants=weights, profile=1)]
    assert kernel_report(kernels, MODEL).weight_bytes == 64 * 32 * 2 + 32 * 4
    convolutions = kernels_of_inspector(json.loads((DATA / "inspector_8_5.json").read_text(encoding="utf-8"))["Layers"])
    expected = 2 * (2352 + 16) + 2 * (2304 + 16) + 36864 + 4 * 64
    assert kernel_report(convolutions, MODEL).weight_bytes == expected


def test_figures_are_of_one_profile() -> None:
    kernels = log("rtx_profiles")
    reports = [kernel_report(kernels, MODEL, profile) for profile in range(3)]
    assert [report.records for report in reports] == [4, 7, 5]
    assert [report.kernels for report in reports] == [3, 5, 1]  # without waits and signals between streams, and shapes
    assert [report.fused_attentions for report in reports] == [1, 1, 0]


def test_figures_of_10_and_of_8_5() -> None:
    ten = kernels_of_inspector(json.loads((DATA / "inspector_10.json").read_text(encoding="utf-8"))["Layers"], 0)
    model = graph(*attention("scores", "softmax", "values"))
    report = kernel_report(ten, model)
    assert (report.kernels, report.attentions, report.fused_attentions, report.fp32) == (5, 1, 1, 1)
    old = kernels_of_inspector(json.loads((DATA / "inspector_8_5.json").read_text(encoding="utf-8"))["Layers"])
    report = kernel_report(old, model)
    assert (report.records, report.kernels, report.casts, report.copies) == (7, 6, 1, 0)
    assert report.fused_attentions == 0


def test_a_part_of_the_graph_in_one_record_is_not_fused_attention() -> None:
    """8.6 names all nodes of such a part, and does not tell its kernels."""
    nodes = ("scores", "scores_masked", "softmax", "values")
    model = graph(*attention("scores", "softmax", "values"))
    hidden = kernel("{ForeignNode[scores...values]}", "Myelin", nodes=nodes)
    assert kernel_report([hidden], model).fused_attentions == 0
    assert kernel_report([kernel("fmha", "kgen", nodes=nodes)], model).fused_attentions == 1
    assert kernel_report([kernel("a", nodes=nodes[:3]), kernel("b", nodes=nodes[3:])], model).fused_attentions == 0


def test_an_attention_of_one_node() -> None:
    """Other kernels name the node as well; the first of these reshapes its keys."""
    model = graph(("Attention", "whole", ["x", "x", "x"], "y"))
    kernels = log("rtx_types/attention")
    assert [kernel.nodes for kernel in kernels] == [(), ("whole",), ("whole",)]
    assert kernel_report(kernels, model).fused_attentions == 1
    assert kernel_report(kernels[:2], model).fused_attentions == 0


def test_finds_attentions() -> None:
    assert attentions_of(graph(*attention("a", "s", "b"))) == [("a", "s", "b")]
    assert attentions_of(graph(("Attention", "whole", ["x", "x", "x"], "y"))) == [("whole",)]
    only_scores = [("MatMul", "a", ["x", "x"], "u"), ("Softmax", "s", ["u"], "v"), ("Conv", "c", ["v", "x"], "w")]
    assert attentions_of(graph(*only_scores)) == []  # the mask head's: convolutions follow it
    assert attentions_of(graph(*only_scores, ("MatMul", "later", ["w", "x"], "y"))) == []
    assert attentions_of(graph(("Softmax", "s", ["x"], "v"), ("MatMul", "b", ["v", "x"], "y"))) == []  # of an input


def test_finds_the_attentions_of_a_detr(tiny_onnx: Path) -> None:
    """Two encoder layers with one each, two decoder layers with two each, but that the first one's own is a constant."""
    found = attentions_of(onnx.load(str(tiny_onnx)))
    assert len(found) == 5
    assert len({name for names in found for name in names}) == 15


def test_unnamed_nodes() -> None:
    """The compiler calls them after their output, as `rtx_types/unnamed.log` shows."""
    assert node_name(helper.make_node("MatMul", ["x", "w"], ["y"])) in log("rtx_types/unnamed")[1].nodes
    assert node_name(helper.make_node("MatMul", ["x", "w"], ["y"], name="n")) == "n"


@pytest.mark.parametrize(
    ("name", "kind", "launched", "multiplies"),
    [
        ("node_Conv_1005_myl1_2", "correlation", True, True),
        ("__myl_FcAddRelu_myl1_62", "runtime_fusion", True, True),
        ("__myl_FcAddRelu_myl1_62", "kgen", True, True),
        ("_gemm_mha_v2_myl1_27", "kgen", True, True),
        ("conv1 + relu1", "CaskConvolution", True, True),
        ("conv1 + relu1 + pool1", "CaskConvActPool", True, True),
        ("proj", "MatrixMultiply", True, True),
        ("fused", "fusedMHA", True, True),
        ("conv1_pool", "CaskPooling", True, False),
        ("PWN(conv1_relu)", "PointWiseV2", True, False),
        ("__myl_CastReplConc_myl1_1", "kgen", True, False),
        ("Reformatting CopyNode for Input Tensor 0 to conv1", "Reformat", True, False),
        ("{ForeignNode[conv1...proj]}", "Myelin", True, False),
        ("__mye41988_0_myl1_0", "shape_call", False, False),
        ("exit^bb^wait^4_myl5_241", "wait", False, False),
        ("__mye96785_myl3_3", "signal", False, False),
        ("[ShapeHostToDeviceCopy 0]", "ShapeHostToDevice", False, False),
        ("Reshape_7", "NoOp", False, False),
    ],
)
def test_kinds(name: str, kind: str, launched: bool, multiplies: bool) -> None:
    found = kernel(name, kind)
    assert is_kernel(found) == launched
    assert computes_products(found) == multiplies


@pytest.mark.parametrize(
    ("name", "kind", "outputs", "expected"),
    [
        ("__myl_ReshTranReshMove_myl1_25", "kgen", (HALF,), (0, 1)),
        ("__myl_Move_myl1_108", "kgen", (HALF,), (0, 1)),
        ("__myl_SlicResh_myl1_108", "kgen", (HALF,), (0, 1)),
        ("__myl_ReshCast_myl1_148", "kgen", (FLOAT,), (1, 0)),
        ("Reformatting CopyNode", "Reformat", (HALF,), (0, 1)),
        ("Reformatting CopyNode", "Reformat", (FLOAT,), (1, 0)),
        ("Reformatting CopyNode", "Reformat", (RecordTensor("z", None, None),), (0, 1)),
        ("cast", "Cast", (FLOAT,), (1, 0)),
        ("__myl_ReshTranAdd_myl1_25", "kgen", (HALF,), (0, 0)),
        ("__myl_CastMoveReshSlicConcReplEtc_myl1_25", "kgen", (HALF,), (0, 0)),
        ("__myl_Cums_myl1_25", "kgen", (HALF,), (0, 0)),
        ("node_conv2d_11_myl1_14", "correlation", (HALF,), (0, 0)),
    ],
)
def test_casts_and_copies(name: str, kind: str, outputs: tuple[RecordTensor, ...], expected: tuple[int, int]) -> None:
    report = kernel_report([kernel(name, kind, outputs=outputs)], MODEL)
    assert (report.casts, report.copies) == expected


def test_kernels_in_fp32() -> None:
    """What reads or writes half precision is bound by that; a kernel without floats is of none."""
    flags = RecordTensor("m", "bool", (1, 8))
    kernels = [
        kernel("__myl_Add_myl0_0", inputs=(FLOAT, flags), outputs=(FLOAT,)),
        kernel("__myl_Add_myl0_1", inputs=(HALF,), outputs=(FLOAT,)),
        kernel("__myl_Eql_myl0_2", inputs=(flags,), outputs=(flags,)),
        kernel("__myl_Tran_myl0_3", inputs=(FLOAT,), outputs=(FLOAT,)),
    ]
    assert kernel_report(kernels, MODEL).fp32 == 1


def test_an_empty_log() -> None:
    report = kernel_report([], MODEL)
    assert (report.records, report.kernels, report.fused_attentions, report.weight_bytes) == (0, 0, 0, 0)
