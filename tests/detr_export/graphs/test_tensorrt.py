"""What TensorRT's parser reads: the lists, our exports against them, and the form for 8.5."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.export import ExportResult
from detr_export.graphs.fp16.casting import to_fp16
from detr_export.graphs.tensorrt import check_parsable, parser_rules, rewrite_for_8_5
from detr_export.runtimes import ArtifactError
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.mask_head import mask_head_file
from detr_export.verification.cases import Case, make_images, make_inputs
from detr_export.verification.tolerances import TOLERANCES

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
NODE = helper.make_node
CASE = Case(129, 127, ((129, 127), (1, 1), (128, 64)))


@pytest.fixture(scope="module")
def detector(tiny_onnx: Path) -> onnx.ModelProto:
    return onnx.load(tiny_onnx)


@pytest.fixture(scope="module")
def detector_17(detector: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph at opset 17, where its operators mean the same."""
    model = copy.deepcopy(detector)
    model.opset_import[0].version = 17
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def fp16_segmenter(fp16_images: ExportResult) -> onnx.ModelProto:
    return onnx.load(fp16_images.path)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    onnx.save(model, folder / "model.onnx")
    with OrtSession(folder / "model.onnx", threads=1) as session:
        return session.run(inputs)


# ---- our exports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["10.16", "11.4.0"])
@pytest.mark.parametrize("fp16", [False, True])
def test_detectors_are_read(version: str, fp16: bool, detector: onnx.ModelProto) -> None:
    check_parsable(to_fp16(detector)[0] if fp16 else detector, version)


@pytest.mark.parametrize("version", ["10.16", "11"])
def test_panoptic_fp16_uint8_files_are_read(version: str, fp16_images: ExportResult) -> None:
    for file in (fp16_images.path, mask_head_file(fp16_images.path)):
        check_parsable(onnx.load(file), version)


def test_8_5_needs_the_rewriting(detector_17: onnx.ModelProto, fp16_segmenter: onnx.ModelProto) -> None:
    for model in (detector_17, fp16_segmenter):
        with pytest.raises(ArtifactError, match=r"TensorRT 8.5.3.1 does not read the graph: .*operator LayerNormalization"):
            check_parsable(model, "8.5.3.1")
        rewritten = rewrite_for_8_5(model)
        check_parsable(rewritten, "8.5.3.1")
        assert rewritten.ir_version <= 8
        onnx.checker.check_model(rewritten, full_check=True)
        assert {node.op_type for node in model.graph.node} >= {"LayerNormalization"}  # the original is as it was


def test_the_form_for_8_5_has_the_same_numbers(detector_17: onnx.ModelProto, tmp_path: Path) -> None:
    inputs = make_inputs(CASE, 3, True, seed=5)
    expected, given = run(detector_17, inputs, tmp_path), run(rewrite_for_8_5(detector_17), inputs, tmp_path)
    for name, value in expected.items():
        assert np.abs(given[name] - value).max() <= 1e-5 * max(1, np.abs(value).max()), name


def test_the_form_for_8_5_of_fp16_and_uint8(fp16_segmenter: onnx.ModelProto, tmp_path: Path) -> None:
    inputs = make_images(CASE, seed=5)
    rewritten = rewrite_for_8_5(fp16_segmenter)
    expected, given = run(fp16_segmenter, inputs, tmp_path), run(rewritten, inputs, tmp_path)
    for name in ("logits", "pred_boxes"):  # ONNX Runtime drops other roundings in the one than in the other
        difference = np.abs(given[name] - expected[name].astype(np.float32)).max()
        assert difference <= TOLERANCES["fp16"].constant[name] / 10, name
    typed = onnx.shape_inference.infer_shapes(rewritten, strict_mode=True).graph
    dtypes = {value.name: value.type.tensor_type.elem_type for value in typed.value_info}
    squares = [node.output[0] for node in rewritten.graph.node if node.name.endswith("/squared")]
    assert len(squares) == 10
    assert {dtypes[name] for name in squares} == {FLOAT}  # they would overflow in fp16


def test_opset_18_is_refused_for_8_5(detector: onnx.ModelProto) -> None:
    with pytest.raises(ArtifactError, match=r"the graph has opset 18, and TensorRT 8\.5 .*; export with --opset 17"):
        rewrite_for_8_5(detector)


# ---- single nodes -------------------------------------------------------------------------------------------------------


def model_of(*nodes: onnx.NodeProto, x: int = FLOAT, y: int = FLOAT, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", x, ["n", 4, 6])],
        [helper.make_tensor_value_info("y", y, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


CAST = NODE("Cast", ["x"], ["y"], to=FLOAT)
QUANTISED = (NODE("QuantizeLinear", ["x", "s", "z"], ["q"]), NODE("DequantizeLinear", ["q", "s", "z"], ["y"]))
SCALE, ZERO = np.float32(0.5), np.int8(0)


@pytest.mark.parametrize(
    ("version", "model", "message"),
    [
        ("10", model_of(NODE("NonZero", ["x"], ["y"]), y=INT64), None),
        ("10", model_of(NODE("Unique", ["x"], ["y"])), "operator Unique"),
        ("10", model_of(NODE("Clip", ["x"], ["y"]), x=INT64, y=INT64), "Clip of INT64"),
        ("10", model_of(NODE("Add", ["x", "x"], ["y"]), x=INT64, y=INT64), None),
        ("8.5", model_of(NODE("Add", ["x", "x"], ["y"]), x=INT64, y=INT64), None),  # read as int32
        ("8.5", model_of(NODE("Relu", ["x"], ["y"]), x=TensorProto.BFLOAT16, y=TensorProto.BFLOAT16), "Relu of BF16"),
        ("8.5", model_of(CAST, x=TensorProto.UINT8), None),
        ("10", model_of(CAST, x=TensorProto.UINT8), None),
        ("10", model_of(NODE("Shape", ["x"], ["y"]), x=TensorProto.UINT8, y=INT64), "Shape of UINT8"),
        ("10", model_of(NODE("Identity", ["x"], ["z"]), NODE("Cast", ["z"], ["y"], to=FLOAT), x=TensorProto.UINT8), "UINT8"),
        ("10", model_of(NODE("CumSum", ["x", "a"], ["y"]), a=1), None),
        (
            "10",
            model_of(
                NODE("Shape", ["x"], ["s"]), NODE("ReduceMax", ["s"], ["a"], keepdims=0), NODE("CumSum", ["x", "a"], ["y"])
            ),
            "CumSum whose input 1 is computed",
        ),
        *[(version, model_of(*QUANTISED, s=SCALE, z=ZERO), None) for version in ("8.5", "10", "11")],
        (
            "10",
            model_of(NODE("DequantizeLinear", ["x", "s"], ["y"]), x=TensorProto.INT32, s=SCALE),
            "DequantizeLinear of INT32",
        ),
        ("10", model_of(NODE("Where", ["c", "x", "x"], ["y"]), c=[True]), None),
        ("10", model_of(NODE("Equal", ["x", "x"], ["y"]), y=TensorProto.BOOL), None),
        ("8.5", model_of(NODE("Shape", ["x"], ["y"], start=1), y=INT64), "Shape of some dimensions"),
        ("10", model_of(NODE("Shape", ["x"], ["y"], start=1), y=INT64), None),
        ("10", model_of(NODE("Relu", ["x"], ["y"]), opset=25), "opset 25 is not in 9 to 24"),
    ],
)
def test_single_nodes(version: str, model: onnx.ModelProto, message: str | None) -> None:
    if message is None:
        check_parsable(model, version)
        return
    with pytest.raises(ArtifactError, match=f"TensorRT {version} does not read the graph: .*{message}"):
        check_parsable(model, version)


@pytest.mark.parametrize("options", [{"start": 1}, {"end": 2}, {"start": 1, "end": 2}, {"start": -2}, {"end": -1}], ids=str)
def test_shapes_of_some_dimensions(options: dict[str, int], tmp_path: Path) -> None:
    model = model_of(NODE("Shape", ["x"], ["y"], name="some", **options), y=INT64)
    x = {"x": np.zeros((3, 4, 6), dtype=np.float32)}
    rewritten = rewrite_for_8_5(model)
    assert "end" not in {item.name for node in rewritten.graph.node for item in node.attribute}
    expected = run(model, x, tmp_path)["y"]
    assert 1 <= len(expected) <= 2
    assert np.array_equal(run(rewritten, x, tmp_path)["y"], expected)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norms(axis: int, bias: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shape = (4, 6)[axis:]
    constants = {"s": random.normal(1, 1, shape).astype(np.float32), "b": random.normal(0, 1, shape).astype(np.float32)}
    inputs = ["x", "s", "b"] if bias else ["x", "s"]
    norm = NODE("LayerNormalization", inputs, ["y"], name="norm", axis=axis, epsilon=0.3)
    model = model_of(norm, **{name: constants[name] for name in inputs[1:]})
    x = {"x": random.normal(5, 3, (2, 4, 6)).astype(np.float32)}
    assert np.abs(run(rewrite_for_8_5(model), x, tmp_path)["y"] - run(model, x, tmp_path)["y"]).max() < 1e-5


def test_what_the_rewriting_does_not_know() -> None:
    norm = NODE("LayerNormalization", ["x", "s"], ["y"], name="norm", axis=1)
    with pytest.raises(ArtifactError, match="norm has axis 1 or several outputs"):
        rewrite_for_8_5(model_of(norm, s=np.ones((4, 6), dtype=np.float32)))
    with pytest.raises(ArtifactError, match="operator Unique"):
        rewrite_for_8_5(model_of(NODE("Unique", ["x"], ["y"])))


# ---- the lists ----------------------------------------------------------------------------------------------------------


def test_rules() -> None:
    old, new = parser_rules("8.5.3.1"), parser_rules("10.16.0")
    assert old.opsets[-1] == 17
    assert "LayerNormalization" not in old.dtypes
    assert new.dtypes["LayerNormalization"] == {"FP32", "FP16", "BF16"}
    assert parser_rules("11.4").dtypes == new.dtypes
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    beyond = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "MeanVarianceNormalization", "Upsample", "Scatter"}
    assert {*old.dtypes, *new.dtypes} <= known | beyond


@pytest.mark.parametrize("version", ["8.6", "9.2", "1", "100.1", ""])
def test_unknown_versions(version: str) -> None:
    with pytest.raises(ArtifactError, match=r"no list of what TensorRT .* reads; expected a version of 8\.5, 10, 11"):
        parser_rules(version)
