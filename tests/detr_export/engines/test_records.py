"""Records of kernels: real lines of the builder's log, and the inspector's documents of each version."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from detr_export.engines.records import Kernel, RecordTensor, dtype_of, kernels_of_inspector, kernels_of_log

DATA = Path(__file__).parent / "data"


def log(name: str) -> list[Kernel]:
    """As the builder gives it: all records in one message, after others."""
    *before, records = (DATA / f"{name}.log").read_text(encoding="utf-8").partition("VERBOSE Layers:")
    return kernels_of_log(["".join(before), records])


def document(name: str) -> list[Any]:
    return list(json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))["Layers"])


def named(kernels: list[Kernel], start: str) -> Kernel:
    (kernel,) = [kernel for kernel in kernels if kernel.name.startswith(start)]
    return kernel


# ---- the builder's log --------------------------------------------------------------------------------------------------


def test_reads_every_record_of_a_log() -> None:
    kernels = log("rtx_fp16")
    lines = (DATA / "rtx_fp16.log").read_text(encoding="utf-8").splitlines()
    assert len(kernels) == sum("LayerType: " in line for line in lines) == 23
    assert [kernel.name for kernel in kernels[:2]] == ["[ShapeHostToDeviceCopy 0]", "__mye41988_0_myl1_0"]
    kinds = {
        "kgen": 11,
        "runtime_fusion": 4,
        "gemm": 3,
        "correlation": 2,
        "maxpool": 1,
        "ShapeHostToDevice": 1,
        "shape_call": 1,
    }
    assert Counter(kernel.kind for kernel in kernels) == kinds
    assert {kernel.profile for kernel in kernels} == {0}
    tensors = [tensor for kernel in kernels for tensor in (*kernel.inputs, *kernel.constants, *kernel.outputs)]
    assert {tensor.dtype for tensor in tensors} == {"fp16", "fp32", "int32", "int64", "bool"}
    assert None not in {tensor.shape for tensor in tensors}


def test_reads_a_kernel_whole() -> None:
    found = named(log("rtx_fp16"), "node_MatMul_283+node_MatMul_274")
    assert found == Kernel(
        name="node_MatMul_283+node_MatMul_274_myl1_21",
        kind="gemm",
        inputs=(RecordTensor("add_503.1_myl1", "fp16", (-1, 128)),),
        constants=(
            RecordTensor("__mye155030_dconst_myl1", "fp16", (128, 256)),
            RecordTensor("__mye144662node_MatMul_283_alpha_myl1", "fp32", (1,)),
            RecordTensor("__mye144663node_MatMul_283_beta_myl1", "fp32", (1,)),
        ),
        outputs=(RecordTensor("__mye155035_myl1", "fp16", (-1, 256)),),
        nodes=("node_MatMul_283", "node_MatMul_274"),
        tactic="__myelin_CASK_STUB",
        profile=0,
    )


def test_reads_inputs_of_several_types_and_scalars() -> None:
    kernels = log("rtx_fp16")
    attention = named(kernels, "_gemm_mha_v2_myl1_27")
    assert [tensor.dtype for tensor in attention.inputs] == ["fp16", "fp16", "fp32", "fp16"]
    assert attention.constants == ()
    assert attention.nodes[0] == "node_matmul_1"
    assert len(attention.nodes) == 6
    sizes = named(kernels, "[ShapeHostToDeviceCopy 0]")
    assert [(tensor.dtype, tensor.shape) for tensor in sizes.outputs] == [
        ("fp32", ()),
        ("fp32", ()),
        ("int64", ()),
        ("int64", ()),
    ]
    assert sizes.nodes == ()


def test_tells_profiles_apart() -> None:
    """Graphs are numbered 1, 3 and 5 here; which profile each is of stands in other names of the same graph."""
    kernels = log("rtx_profiles")
    assert Counter(kernel.profile for kernel in kernels) == {0: 4, 1: 7, 2: 5}
    assert {kernel.name: kernel.profile for kernel in kernels if kernel.name.startswith("_gemm_mha")} == {
        "_gemm_mha_v2_myl1_27": 0,
        "_gemm_mha_v2_myl3_31": 1,
    }
    assert named(kernels, "exit^bb^wait^4_myl5_241").profile == 2
    assert "[profile" not in repr(kernels)
    convolutions = [kernel for kernel in kernels if kernel.kind == "correlation"]
    assert [kernel.nodes[0] for kernel in convolutions] == ["node_Conv_1005"] * 3
    assert [kernel.inputs[0].shape for kernel in convolutions] == [(-1, 4, -1, -1), (1, 4, 256, 256), (-1, 4, 480, 640)]


def test_names_may_hold_commas_brackets_and_plus_signs() -> None:
    kernel = log("rtx_types/names")[1]
    assert (kernel.name, kernel.kind) == ("a, b [1] + c_myl0_1", "gemm")
    assert kernel.nodes == ("a, b [1] + c", "r+s]")
    assert kernel.inputs == (RecordTensor("x, a", "fp32", (-1, 64)),)
    assert kernel.outputs == (RecordTensor("o]", "fp32", (-1, 128)),)
    assert [tensor.shape for tensor in kernel.constants] == [(64, 128), (1,), (1,)]


@pytest.mark.parametrize(
    ("graph", "word"),
    [("bf16", "bf16"), ("int8", "int8"), ("int8mm", "int8"), ("fp8", "fp8"), ("uint8", "fp32"), ("acc", "fp16")],
)
def test_reads_the_types_of_real_products(graph: str, word: str) -> None:
    (product,) = [kernel for kernel in log(f"rtx_types/{graph}") if kernel.kind in ("gemm", "correlation")]
    assert product.inputs[0].dtype == product.constants[0].dtype == word


def test_reads_the_log_of_10() -> None:
    """10 has no constants, and the type stands in another field; a log file has words before the record."""
    line = (
        "[11/29/2026-15:00:00] [V] [TRT] Name: /enc/q/MatMul+/enc/k/MatMul_myl0_16, LayerType: gemm, "
        "Inputs: [ { Name: x_20, Dimensions: [1,40,256], Format/Datatype: Half }], "
        "Outputs: [ { Name: y, Dimensions: [3,40,256], Format/Datatype: Half }], "
        "TacticName: sm80_xmma_gemm, StreamId: 0, Metadata: [ONNX Layer: /enc/q/MatMul][ONNX Layer: /enc/k/MatMul]"
    )
    assert kernels_of_log([line]) == [
        Kernel(
            "/enc/q/MatMul+/enc/k/MatMul_myl0_16",
            "gemm",
            (RecordTensor("x_20", "fp16", (1, 40, 256)),),
            (),
            (RecordTensor("y", "fp16", (3, 40, 256)),),
            ("/enc/q/MatMul", "/enc/k/MatMul"),
            "sm80_xmma_gemm",
            0,
        )
    ]


def test_a_line_that_was_cut() -> None:
    """Cut before the outputs it is no record; cut later it keeps what is whole."""
    (line,) = [
        line
        for line in (DATA / "rtx_fp16.log").read_text(encoding="utf-8").splitlines()
        if "Name: _gemm_mha_v2_myl1_27" in line
    ]
    outputs, metadata = line.index(", Outputs: "), line.index("[ONNX Layer: node_softmax]")
    for end in range(0, outputs + len(", Outputs"), 7):
        assert kernels_of_log([line[:end]]) == []
    for end in range(metadata, metadata + len("[ONNX Layer: node_softmax"), 5):
        (kernel,) = kernels_of_log([line[:end]])
        assert kernel.nodes == ("node_matmul_1", "softmax_cast_to_fp16_node")
        assert len(kernel.inputs) == 4


def test_a_log_without_records() -> None:
    assert kernels_of_log([]) == []
    lines = ["Total Weights Memory: 3137984 bytes", "Layers:", "", " Name: pixel_values, IOMode: Input, DataType: Float"]
    assert kernels_of_log(lines) == kernels_of_log(["\n".join(lines)]) == []


# ---- the inspector ------------------------------------------------------------------------------------------------------


def test_reads_the_document_of_8_5() -> None:
    kernels = kernels_of_inspector(document("inspector_8_5"))
    assert [(kernel.kind, kernel.nodes) for kernel in kernels] == [
        ("Reformat", ()),
        ("CaskConvolution", ("conv1", "relu1")),
        ("CaskConvolution", ("conv2", "add2", "relu2")),
        ("CaskConvolution", ("conv3.weight", "conv3_QuantizeLinear", "conv3")),
        ("MatrixMultiply", ("proj",)),
        ("Myelin", ()),
        ("NoOp", ("Reshape_7",)),
    ]
    reads = [[tensor.dtype for tensor in kernel.inputs] for kernel in kernels]
    assert reads == [["fp32"], ["fp16"], [None, None], ["int8", "fp16"], ["fp32", "fp32"], ["fp16"], ["bool"]]
    assert [tensor.dtype for tensor in kernels[2].constants] == ["fp16", "fp16"]
    assert kernels[3].constants == (
        RecordTensor("conv3.weight + conv3_QuantizeLinear + conv3 Weights", "int8", (36864,)),
        RecordTensor("conv3.weight + conv3_QuantizeLinear + conv3 Bias", "fp32", (64,)),
    )
    assert kernels[1].inputs[0].shape == (1, 3, 64, 96)
    assert (kernels[1].tactic[:9], kernels[4].tactic) == ("sm80_xmma", "0x0000000000000001")


def test_reads_the_document_of_10() -> None:
    layers = document("inspector_10")
    first, second = kernels_of_inspector(layers, 0), kernels_of_inspector(layers, 1)
    assert [kernel.nodes for kernel in first] == [kernel.nodes for kernel in second]
    assert [kernel.nodes for kernel in first[:3]] == [("conv1", "relu1"), ("q", "k"), ("scores", "softmax", "values")]
    assert [kernel.profile for kernel in (*first, *second)] == [0] * 5 + [1] * 5
    assert [kernel.inputs[0].dtype for kernel in first] == ["fp16", "fp16", "fp16", "fp16", "fp32"]
    assert {tensor.dtype for kernel in second for tensor in kernel.inputs} == {None}
    assert second[0].name == "conv1 + relu1"
    assert kernels_of_inspector(layers) == [*first, *second]


def test_an_engine_that_does_not_mark_profiles_is_of_the_one_that_was_asked_about() -> None:
    layers = document("inspector_8_5")
    assert {kernel.profile for kernel in kernels_of_inspector(layers, 2)} == {2}
    assert len(kernels_of_inspector(layers, 2)) == len(kernels_of_inspector(layers)) == 7


def test_an_engine_without_details() -> None:
    assert kernels_of_inspector(["conv1 + relu1", "gemm"], 0) == kernels_of_inspector([]) == []


def test_nodes_of_a_name_without_metadata() -> None:
    """Only where the field is missing: an empty one says that the kernel is of no node."""
    names = {
        "a + b": ("a", "b"),
        "a+b": ("a+b",),
        "m+n_myl0_3": ("m", "n"),
        "__myl_Move_myl0_4": (),
        "c [profile 1]": ("c",),
    }
    for name, nodes in names.items():
        assert kernels_of_inspector([{"Name": name, "LayerType": "gemm"}])[0].nodes == nodes
        assert kernels_of_inspector([{"Name": name, "LayerType": "gemm", "Metadata": ""}])[0].nodes == ()


# ---- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("fp32", ["Float", "Row major linear FP32", "Row major linear FP32 format", "FP32", "Float(64,1:4)", "float32"]),
        ("fp16", ["Half", "Channel major FP16 format where channel % 8 == 0", "Half(64,1:8,...)", "Float16", "FP16"]),
        ("fp16", ["Two wide channel vectorized row major FP16 format", "Channel major FP16 format where channel % 4 == 0"]),
        ("bf16", ["BFloat16", "BF16", "Row major linear BF16 format"]),
        ("fp8", ["FP8", "Row major linear FP8 format", "Float8", "FP8E4M3"]),
        ("int8", ["Int8", "Row major Int8 format", "Thirty-two wide channel vectorized row major Int8 format", "INT8"]),
        ("uint8", ["UInt8", "Row major linear UINT8 format"]),
        ("int32", ["Int32", "Row major linear INT32 format"]),
        ("int64", ["Int64", "Row major linear INT64 format"]),
        ("bool", ["Bool", "Row major linear BOOL format"]),
        (
            None,
            [
                "N/A due to dynamic shapes",
                "Format not available due to dynamic shapes",
                "",
                "(Linear) Row major linear format",
            ],
        ),
        (None, ["(NC/32HW32) Thirty-two wide channel vectorized format", "Int4", "FP4"]),
    ],
)
def test_words_of_types(dtype: str | None, words: list[str]) -> None:
    assert [dtype_of(word) for word in words] == [dtype] * len(words)
