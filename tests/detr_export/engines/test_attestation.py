"""Whether an engine computes in the graph's precisions: by real records, by those of each version, and on the double."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.engines.attestation import Attestation, NodePrecision, attest, graph_precision, node_precisions
from detr_export.engines.records import Kernel, RecordTensor, kernels_of_inspector, kernels_of_log
from detr_export.runtimes.errors import ArtifactError, AttestationError
from tests.tensorrt_double.fixtures import NEWEST, OLDEST, TEN, Install

DATA = Path(__file__).parent / "data"
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def log(name: str) -> list[Kernel]:
    return kernels_of_log([(DATA / f"{name}.log").read_text(encoding="utf-8")])


def document(name: str) -> list[Any]:
    return list(json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))["Layers"])


def wanted(convolution: bool = False, **precisions: str) -> dict[str, NodePrecision]:
    return {name: NodePrecision(precision, convolution) for name, precision in precisions.items()}


def kernel(name: str, reads: str | None, *nodes: str, kind: str = "gemm", **changes: Any) -> Kernel:
    tensor = RecordTensor("x", reads, (1, 8))
    values = {"constants": (), "outputs": (tensor,), "tactic": "", "profile": 0, **changes}
    return Kernel(name, kind, (tensor,), nodes=nodes, **values)


# ---- real kernels and their graphs --------------------------------------------------------------------------------------


def model(nodes: list[onnx.NodeProto], inputs: dict[str, int], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=dtype)


def product(operator: str = "MatMul", source: str = "xf", weight: str = "wf") -> onnx.NodeProto:
    return helper.make_node(operator, [source, weight], ["y"], name="p")


def widened(operator: str = "MatMul", dtype: Any = np.float16) -> onnx.ModelProto:
    casts = [cast("x", "xf", FLOAT), cast("w", "wf", FLOAT)]
    rank = (4, 4, 3, 3) if operator == "Conv" else (4, 4)
    return model([*casts, product(operator), cast("y", "z", HALF)], {"x": HALF}, {"w": np.ones(rank, dtype)})


def quantised(operator: str, zero: onnx.TensorProto) -> onnx.ModelProto:
    nodes = []
    for name in ("x", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", zero.name], [f"{name}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", "s", zero.name], [f"{name}f"]))
    rank = (4, 4, 3, 3) if operator == "Conv" else (4, 4)
    made = model([*nodes, product(operator)], {"x": FLOAT}, {"w": np.ones(rank, np.float32), "s": np.float32(0.1)})
    made.graph.initializer.append(zero)
    return made


def plain() -> onnx.ModelProto:
    return model([product("MatMul", "x", "w")], {"x": FLOAT}, {"w": np.ones((4, 4), np.float32)})


def bf16() -> onnx.ModelProto:
    casts = [cast("x", "xf", TensorProto.BFLOAT16), cast("w", "wf", TensorProto.BFLOAT16)]
    return model([*casts, product()], {"x": FLOAT}, {"w": np.ones((4, 4), np.float32)})


def attention() -> onnx.ModelProto:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="whole")
    inputs = [helper.make_tensor_value_info(name, HALF, [1, 8, 64, 32]) for name in "qkv"]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", HALF, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


INT8_ZERO = numpy_helper.from_array(np.int8(0), "zero")
FP8_ZERO = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\x00", raw=True)
REAL: dict[str, tuple[Callable[[], onnx.ModelProto], str, str]] = {  # the graph, its precision, what its kernel computes in
    "acc": (widened, "fp16", "fp16-in-fp32"),
    "acc3": (widened, "fp16", "fp32"),
    "accconv": (lambda: widened("Conv"), "fp16", "fp16-in-fp32"),
    "bf16": (bf16, "bf16", "bf16"),
    "int8": (lambda: quantised("Conv", INT8_ZERO), "int8", "int8"),
    "int8mm": (lambda: quantised("MatMul", INT8_ZERO), "int8", "int8"),
    "fp8": (lambda: quantised("MatMul", FP8_ZERO), "int8", "fp8"),
    "uint8": (plain, "fp32", "fp32"),
    "attention": (attention, "fp16", "fp16"),
}


@pytest.mark.parametrize("name", REAL)
def test_attests_real_kernels(name: str) -> None:
    make, precision, shown = REAL[name]
    result = attest(log(f"rtx_types/{name}"), node_precisions(make()))
    assert result.layers == {shown: 1}
    assert (result.attested, result.total, result.unattested) == (1, 1, ())
    assert bool(result.convolutions) == (name in ("accconv", "int8"))
    assert bool(result.attentions) == (name == "attention")
    assert graph_precision(make()) == precision


@pytest.mark.parametrize("name", [name for name, (_, _, shown) in REAL.items() if shown != "fp32"])
def test_an_fp32_product_that_runs_in_less_is_refused(name: str) -> None:
    """The same kernels: without the casts in the graph, nobody allowed them."""
    shown = REAL[name][2].removesuffix("-in-fp32")
    with pytest.raises(
        AttestationError, match=rf"not what was asked for: .* 1 of 1 .* \((p|whole)\) in {shown} instead of fp32"
    ):
        attest(log(f"rtx_types/{name}"), wanted(p="fp32", whole="fp32"))


def test_casts_that_do_not_widen_both_factors() -> None:
    weight = {"w": np.ones((4, 4), np.float16)}
    one = model([cast("w", "wf", FLOAT), product("MatMul", "x", "wf")], {"x": FLOAT}, weight)
    assert node_precisions(one) == {"p": NodePrecision("fp32", False)}
    integers = model([cast("x", "xf", FLOAT), cast("w", "wf", FLOAT), product()], {"x": TensorProto.UINT8}, weight)
    assert node_precisions(integers) == {"p": NodePrecision("fp32", False)}
    mixed = model([cast("x", "xf", FLOAT), cast("w", "wf", FLOAT), product()], {"x": TensorProto.BFLOAT16}, weight)
    assert node_precisions(mixed) == {"p": NodePrecision("fp32", False)}


# The graph's products that the lines of the fixtures are of.
PRODUCTS = {
    **{f"node_Conv_{number}": NodePrecision("fp16", True) for number in (1005, 1007)},
    **{f"node_MatMul_{number}": NodePrecision("fp16", False) for number in (274, 283, 291, 304, 571, 573, 575, 585)},
    **{f"node_matmul{number}": NodePrecision("fp16", False) for number in ("", "_1", "_4", "_5", "_16")},
    "node_MatMul_577": NodePrecision("fp32", False, "bbox_predictor.layers.2"),
}


def test_attests_the_kernels_of_a_detr() -> None:
    result = attest(log("rtx_fp16"), PRODUCTS)
    assert result == Attestation(
        convolutions={"fp16": 2},
        products={"fp16": 6, "fp32": 1},  # two merged into one, three into one, and four of their own
        attentions={"fp16": 2},
        profiles=1,
        total=16,
        unattested=(),
    )
    assert result.layers == {"fp16": 10, "fp32": 1}
    assert result.summary() == "16 of 16 products attested; kernels: 10 in fp16, 1 in fp32"
    assert json.loads(json.dumps(result.to_dict())) == {
        "convolutions": {"fp16": 2},
        "products": {"fp16": 6, "fp32": 1},
        "attentions": {"fp16": 2},
        "profiles": 1,
        "total": 16,
        "attested": 16,
    }


@pytest.mark.parametrize("node", ["node_MatMul_274", "node_MatMul_573", "node_matmul", "node_matmul_5"])
def test_a_kernel_of_several_products_suits_all_of_them(node: str) -> None:
    """Of a merged product or a fused attention, one that the graph has in fp32 is enough."""
    nodes = {**PRODUCTS, node: NodePrecision("fp32", False, "model.some.module")}
    with pytest.raises(AttestationError, match=r"1 of 11 .* kernels .* \(model.some.module\) in fp16 instead of fp32$"):
        attest(log("rtx_fp16"), nodes)
    result = attest(log("rtx_fp16"), {**PRODUCTS, node: NodePrecision("fp16-in-fp32", False)})
    assert result.layers == {"fp16": 9, "fp16-in-fp32": 1, "fp32": 1}


def test_an_fp16_box_layer_is_refused_by_its_module() -> None:
    (box,) = [kernel for kernel in log("rtx_fp16") if "node_MatMul_577" in kernel.nodes]
    half = Kernel(**{**vars(box), "inputs": (RecordTensor("x", "fp16", (1, 8)),), "constants": ()})
    others = [kernel for kernel in log("rtx_fp16") if kernel != box]
    with pytest.raises(AttestationError, match=r"1_151 \(bbox_predictor.layers.2\) in fp16 instead of fp32"):
        attest([*others, half], PRODUCTS)


def test_fp16_that_became_fp32_is_refused() -> None:
    with pytest.raises(AttestationError, match=r"4 of 4 .* node_Conv_1005_myl1_2 \(node_Conv_1005\) in fp32 instead"):
        attest(log("rtx_fp32"), PRODUCTS)


def test_a_product_that_no_kernel_computes_is_unattested() -> None:
    """The first query is a constant, so the compiler computes its projection; an addition still names the node."""
    nodes = {name: NodePrecision("fp32", False) for name in ("node_MatMul_389", "node_matmul", "node_matmul_1")}
    result = attest(log("rtx_fp32"), nodes)
    assert result.unattested == ("node_MatMul_389",)
    assert (result.attested, result.total) == (2, 3)
    assert result.summary().startswith("2 of 3 products attested, 1 unattested; kernels: ")


def test_every_profile_is_attested() -> None:
    kernels = log("rtx_profiles")
    nodes = {name: PRODUCTS[name] for name in ("node_Conv_1005", "node_matmul")}
    result = attest(kernels, nodes)
    assert (result.profiles, result.convolutions) == (3, {"fp16": 3})
    assert result.unattested == ("node_matmul",)  # the lines of the third profile hold no attention
    (last,) = [kernel for kernel in kernels if kernel.profile == 2 and kernel.kind == "correlation"]
    wide = Kernel(**{**vars(last), "inputs": (RecordTensor("x", "fp32", None),), "constants": ()})
    with pytest.raises(
        AttestationError, match=r"1 of \d+ .* node_Conv_1005_myl5_\d+ \(node_Conv_1005\) in fp32 instead of fp16"
    ):
        attest([kernel for kernel in kernels if kernel != last] + [wide], nodes)


# ---- the words of each version ------------------------------------------------------------------------------------------


def test_attests_the_document_of_8_5() -> None:
    nodes = {**wanted(True, conv1="fp16", conv2="fp16", conv3="int8"), **wanted(proj="fp32", query="fp16", logits="fp16")}
    result = attest(kernels_of_inspector(document("inspector_8_5"), 0), nodes)
    assert result.convolutions == {"fp16": 2, "int8": 1}  # of the second, the weights tell
    assert result.products == {"fp32": 1}
    assert result.unattested == ("query", "logits")  # in a part of the graph whose kernels are not shown


def test_attests_the_document_of_10() -> None:
    nodes = {**wanted(True, conv1="fp16"), **wanted(q="fp16", k="fp16", scores="fp16", values="fp16", box="fp32")}
    first = attest(kernels_of_inspector(document("inspector_10"), 0), nodes)
    assert (first.convolutions, first.products, first.attentions) == ({"fp16": 1}, {"fp16": 1, "fp32": 1}, {"fp16": 1})
    assert first.attested == 6
    both = attest(kernels_of_inspector(document("inspector_10")), nodes)
    assert both.convolutions == {"fp16": 2}
    assert both.unattested == ("q", "k", "scores", "values", "box")  # the shapes of the second profile were not set


LAYERS = {
    "10": {"Name": "conv1", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu]"},
    "8.5": {"Name": "conv1 + relu", "LayerType": "CaskConvolution"},
    "8.5 +": {"Name": "conv1.weight + conv1 + PWN(relu)", "LayerType": "CaskConvActPool"},
    "myelin": {"Name": "__myl_Gemm_7", "LayerType": "gemm", "Metadata": "[ONNX Layer: conv1]"},
    "unspaced": {"Name": "conv2+conv1_myl0_7", "LayerType": "gemm"},
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "word", ["Row major linear FP16 format", "Half", "Channel major FP16 format where channel % 8 == 0"]
)
def test_attests_the_words_of_each_version(kind: str, word: str) -> None:
    layer = {**LAYERS[kind], "Inputs": [{"Name": "x", "Format/Datatype": word}]}
    assert attest(kernels_of_inspector([layer, "another"]), wanted(conv1="fp16")).layers == {"fp16": 1}
    with pytest.raises(AttestationError, match="in fp16 instead of fp32"):
        attest(kernels_of_inspector([layer]), wanted(conv1="fp32"))


def test_what_is_not_shown_neither_passes_nor_fails() -> None:
    unknown = [kernel("a", None, "p"), kernel("b", None, "q", kind="CaskConvolution")]
    result = attest(unknown, wanted(p="fp16", q="fp32"))
    assert (result.attested, result.layers, result.unattested) == (0, {}, ("p", "q"))
    assert result.summary() == "precision unattested: TensorRT does not show it"
    hidden = attest([kernel("{ForeignNode[p...q]}", "fp32", "p", "q", kind="Myelin")], wanted(p="fp16", q="fp16"))
    assert (hidden.attested, hidden.layers) == (0, {})
    some = attest([*unknown, kernel("c", "fp16", "r")], wanted(p="fp16", q="fp32", r="fp16"))
    assert (some.attested, some.layers) == (1, {"fp16": 1})


def test_factors_are_no_weights() -> None:
    """A product of two tensors has only its factors as constants, which are fp32 in fp16 kernels as well."""
    factors = (RecordTensor("alpha", "fp32", (1, 1)), RecordTensor("beta", "fp32", (1,)))
    assert attest([kernel("a", None, "p", constants=factors)], wanted(p="fp16")).unattested == ("p",)
    weights = (*factors, RecordTensor("w", "fp16", (8, 8)))
    assert attest([kernel("a", None, "p", constants=weights)], wanted(p="fp16")).unattested == ()


def test_a_sum_of_another_type_does_not_hide_the_product() -> None:
    """An fp32 product may add an fp16 tensor in the same kernel."""
    weight, added = RecordTensor("w", "fp32", (8, 8)), RecordTensor("r", "fp16", (1, 8))
    fused = kernel("a", "fp32", "p", constants=(weight,))
    mixed = Kernel(**{**vars(fused), "inputs": (*fused.inputs, added)})
    assert attest([mixed], wanted(p="fp32")).layers == {"fp32": 1}
    with pytest.raises(AttestationError, match="in fp32 instead of fp16"):
        attest([mixed], wanted(p="fp16"))


def test_a_kernel_of_unknown_nodes() -> None:
    """It attests no node. But a precision that the whole graph does not have is wrong wherever it is."""
    result = attest([kernel("fused", "fp32"), kernel("a", "fp16", "p")], wanted(p="fp16", q="fp32"))
    assert (result.layers, result.unattested) == ({"fp32": 1, "fp16": 1}, ("q",))
    with pytest.raises(AttestationError, match="fused in fp16, which no product of the graph is in"):
        attest([kernel("fused", "fp16"), kernel("a", "fp32", "p")], wanted(p="fp32"))


@pytest.mark.parametrize(
    ("kernels", "shown"),
    [
        ([], "no kernel that computes"),
        ([kernel("relu", "fp16", "p", kind="PointWiseV2")], "no kernel that computes"),
        ([kernel("fused", "fp32")], "{'fp32': 1}"),
    ],
)
def test_records_that_do_not_tell_are_refused(kernels: list[Kernel], shown: str) -> None:
    with pytest.raises(
        AttestationError, match=f"cannot be attested: TensorRT's records show {shown}, and the graph has .*fp16"
    ):
        attest(kernels, wanted(p="fp16"))


# ---- the graph ----------------------------------------------------------------------------------------------------------


def test_reads_precision_off_the_graph(tiny_onnx: Path) -> None:
    found = node_precisions(onnx.load(str(tiny_onnx)))
    assert graph_precision(onnx.load(str(tiny_onnx))) == "fp32"
    assert {node.precision for node in found.values()} == {"fp32"}
    assert "model.encoder.layers.0.self_attn" in {node.module for node in found.values()}
    half = model([product("MatMul", "x", "w")], {"x": HALF}, {"w": np.eye(2, dtype=np.float16)})
    assert graph_precision(half) == "fp16"
    with pytest.raises(ArtifactError, match="no convolution and no matrix product"):
        graph_precision(model([helper.make_node("Relu", ["x"], ["y"])], {"x": FLOAT}, {}))


# ---- the double ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [NEWEST, TEN, OLDEST])
def test_the_inspector_is_asked_about_each_profile(
    version: str, install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path
) -> None:
    """Without a context whose shapes are set it shows no formats, and each context is of one profile."""
    from tests.tensorrt_double.engines import write_engine

    knobs = install_tensorrt(version)
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    plan = write_engine(tiny_onnx_17, tmp_path / "a.engine", version).read_bytes()
    nodes = node_precisions(onnx.load(str(tiny_onnx_17)))
    with knobs.device.active():
        _, engine = tensorrt_api.tensorrt().load_engine(plan, False)
        by_profile = tensorrt_api.tensorrt().engine_layers(engine, knobs.device)
    assert len(by_profile) == 3
    assert not knobs.device.streams
    kernels = [kernel for index, layers in enumerate(by_profile) for kernel in kernels_of_inspector(layers, index)]
    result = attest(kernels, nodes)
    assert result.profiles == 3
    assert result.unattested == ()
    assert result.layers == {"fp32": 3 * len(nodes)}


def test_an_inspector_without_shapes_leaves_the_engine_unattested(
    install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path
) -> None:
    from tests.tensorrt_double.engines import write_engine

    install_tensorrt(TEN)
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    _, engine = tensorrt_api.tensorrt().load_engine(write_engine(tiny_onnx, tmp_path / "a.engine", TEN).read_bytes(), False)
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(tensorrt_api.tensorrt().trt.LayerInformationFormat.JSON))["Layers"]
    result = attest(kernels_of_inspector(layers), node_precisions(onnx.load(str(tiny_onnx))))
    assert result.products == {}
    assert set(result.convolutions) == {"fp32"}  # their weights tell
    assert 0 < result.attested < result.total


def test_a_context_that_cannot_be_made(install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    from detr_export.runtimes.errors import BackendError
    from tests.tensorrt_double.engines import write_engine

    knobs = install_tensorrt(NEWEST)
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    with knobs.device.active():
        _, engine = tensorrt_api.tensorrt().load_engine(
            write_engine(tiny_onnx, tmp_path / "a.engine", NEWEST).read_bytes(), False
        )
        knobs.refuses_contexts = True
        with pytest.raises(BackendError, match=r"no execution context: .*out of memory"):
            tensorrt_api.tensorrt().engine_layers(engine, knobs.device)
    assert not knobs.device.streams


@pytest.mark.parametrize("version", [NEWEST, TEN])
def test_the_builders_log_says_what_the_inspector_says(
    version: str, install_tensorrt: Install, tiny_onnx: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knobs = install_tensorrt(version)
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    trt = tensorrt_api.tensorrt().trt
    builder = trt.Builder(tensorrt_api.tensorrt().logger)
    network = tensorrt_api.tensorrt().generation.create_network(builder)
    trt.OnnxParser(network, tensorrt_api.tensorrt().logger).parse_from_file(str(tiny_onnx))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for _ in range(2):
        profile = builder.create_optimization_profile()
        for name, size in (("pixel_values", (1, 3, 64, 64)), ("pixel_mask", (1, 64, 64))):
            profile.set_shape(name, size, size, size)
        config.add_optimization_profile(profile)
    with caplog.at_level("DEBUG", "detr_export.tensorrt"):
        plan = builder.build_serialized_network(network, config)
    kernels = kernels_of_log([record.getMessage() for record in caplog.records])
    _, engine = tensorrt_api.tensorrt().load_engine(bytes(plan), False)
    with knobs.device.active():
        asked = tensorrt_api.tensorrt().engine_layers(engine, knobs.device)
    shown = [kernel for index, layers in enumerate(asked) for kernel in kernels_of_inspector(layers, index)]
    assert [(kernel.nodes, kernel.profile) for kernel in kernels] == [(kernel.nodes, kernel.profile) for kernel in shown]
    nodes = node_precisions(onnx.load(str(tiny_onnx)))
    assert attest(kernels, nodes) == attest(shown, nodes)
