"""fp16 graphs: which types they have, what they compute, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs import export as onnx_export
from detr_export.graphs import fp16_rounding
from detr_export.graphs.export import ExportOptions, export_onnx, verify_file
from detr_export.graphs.fp16 import LARGEST, SMALLEST, casting
from detr_export.graphs.fp16.casting import check_fp16, to_fp16
from detr_export.graphs.fp16_rounding import MAGNITUDES, rounding_twin
from detr_export.runtimes import ArtifactError, VerificationError
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.metadata import METADATA_KEY
from detr_export.verification import tolerances
from detr_export.verification.cases import Case, make_inputs
from detr_export.verification.tolerances import TOLERANCES

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
POSITION_WEIGHTS = ("encoder.position_weight", "decoder.key_weight")
CASES = (
    Case(64, 64, ((64, 64),)),
    Case(129, 127, ((129, 127), (1, 1), (128, 64))),
    Case(211, 160, ((211, 3), (5, 160), (100, 100))),  # feature rows and columns without a real pixel
)


@pytest.fixture(scope="module")
def full(tiny_onnx: Path) -> onnx.ModelProto:
    return onnx.load(tiny_onnx)


@pytest.fixture(scope="module")
def half(full: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(full)[0]


def dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Of every value, as shape inference finds them without what the file says."""
    bare = copy.deepcopy(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    onnx.save(model, folder / "model.onnx")
    with OrtSession(folder / "model.onnx", threads=1) as session:
        return session.run({spec.name: inputs[spec.name].astype(spec.dtype) for spec in session.inputs})


def test_products_are_fp16_and_islands_fp32(half: onnx.ModelProto) -> None:
    types = dtypes(half)
    by_type: dict[str, list[set[int]]] = {}
    for node in half.graph.node:
        by_type.setdefault(node.op_type, []).append({types[name] for name in [*node.input, *node.output] if name})
    assert all(found == {HALF} for found in by_type["Conv"])
    assert sum(found == {FULL} for found in by_type["MatMul"]) == 1  # the box head's last layer
    assert sum(found == {HALF} for found in by_type["MatMul"]) == len(by_type["MatMul"]) - 1
    for operator in ("Softmax", "LayerNormalization", "Sigmoid", "Sin", "Cos", "Floor"):
        assert by_type[operator], operator
        assert all(found == {FULL} for found in by_type[operator]), operator
    # The counts of the position encoding, and what is made of them and of the mask.
    for operator in ("Range", "GreaterOrEqual", "ReduceSum", "Div", "Sub"):
        assert by_type[operator], operator
        assert all(HALF not in found for found in by_type[operator]), operator
    assert all(types[value.name] != HALF for value in [*half.graph.input, *half.graph.output])


@pytest.mark.parametrize("kept", ["attention", "transformer"])
def test_parts_that_stay_fp32(kept: str, full: onnx.ModelProto, half: onnx.ModelProto, tmp_path: Path) -> None:
    wider, weights = to_fp16(full, keep_fp32=kept)
    check_fp16(wider, kept)
    types = dtypes(wider)
    products = [node for node in wider.graph.node if node.op_type == "MatMul"]
    learned = [any(name in {item.name for item in wider.graph.initializer} for name in node.input) for node in products]
    in_full = [types[node.output[0]] == FULL for node in products]
    assert len(products) > 20
    assert all(types[node.output[0]] == HALF for node in wider.graph.node if node.op_type == "Conv")
    if kept == "attention":  # scores and their use: every product of two activations, and the box head's last layer
        assert [full_one for full_one, has_weights in zip(in_full, learned, strict=True) if not has_weights].count(
            False
        ) == 0
        assert sum(full_one and has_weights for full_one, has_weights in zip(in_full, learned, strict=True)) == 1
        assert weights.fp32 == to_fp16(full)[1].fp32
    else:
        assert all(in_full)
        producers = {name: node for node in wider.graph.node for name in node.output}
        (before,) = [node for node in products if any(name.endswith("input_projection.weight") for name in node.input)]
        while before.op_type != "Relu":  # the backbone's last node: all that follows only moves its values
            before = producers[before.input[0]]
            assert before.op_type in ("Cast", "Reshape", "Transpose", "Relu")
        assert types[before.output[0]] == HALF
        assert weights.fp32 > 10 * to_fp16(full)[1].fp32
        with pytest.raises(ArtifactError, match="is not fp16"):
            check_fp16(wider)
    # With every result rounded. What the attention adds is lost in the rounding of the rest.
    inputs = make_inputs(CASES[1], 3, True, 0)
    expected = run(full, inputs, tmp_path)["logits"]
    off = [np.abs(run(rounding_twin(model)[0], inputs, tmp_path)["logits"] - expected).max() for model in (half, wider)]
    assert 0 < off[1] < (off[0] if kept == "transformer" else TOLERANCES["fp16"].constant["logits"])


def test_refuses_an_unknown_part(full: onnx.ModelProto) -> None:
    with pytest.raises(ArtifactError, match="keep_fp32 is 'head'; expected attention or transformer"):
        to_fp16(full, keep_fp32="head")


def test_masks_never_become_fp16(half: onnx.ModelProto) -> None:
    """Down to the scores that they are added to: -3.4e38 would be -inf there."""
    types = dtypes(half)
    lowest = np.finfo(np.float32).min
    waiting = [item.name for item in half.graph.initializer if (numpy_helper.to_array(item) == lowest).any()]
    assert waiting
    reached = set()
    while waiting:
        name = waiting.pop()
        assert types[name] == FULL, name
        for node in half.graph.node:
            if name in node.input:
                reached.add(node.op_type)
                waiting.extend(node.output if node.op_type != "Softmax" else ())
    assert reached == {"Mul", "Expand", "Reshape", "Add", "Softmax"}  # the cross-attention's bias once for each head


def test_positions_become_fp16_in_their_product(half: onnx.ModelProto) -> None:
    """They are exact up to there, and so what they add to queries and keys is rounded once."""
    types = dtypes(half)
    producers = {name: node for node in half.graph.node for name in node.output}
    readers = [node for node in half.graph.node if any(name.endswith(POSITION_WEIGHTS) for name in node.input)]
    assert [node.op_type for node in readers] == ["MatMul"] * len(POSITION_WEIGHTS)
    for node in readers:
        assert {types[name] for name in [*node.input, *node.output]} == {HALF}
        (added,) = [
            other for other in half.graph.node if node.output[0] in other.input and other.op_type in ("Add", "Concat")
        ]
        assert types[added.output[0]] == HALF
        value = node.input[0]
        while producers[value].op_type != "Cast":
            assert producers[value].op_type in ("Unsqueeze", "Reshape")
            value = producers[value].input[0]
        assert types[producers[value].input[0]] == FULL


def test_no_island_is_rounded_inside(half: onnx.ModelProto) -> None:
    producers = {name: node for node in half.graph.node for name in node.output}
    types = dtypes(half)
    casts = [node for node in half.graph.node if node.op_type == "Cast" and types[node.output[0]] == FULL]
    assert any(types[node.input[0]] == HALF for node in casts)
    for node in casts:
        before = producers.get(node.input[0])
        assert before is None or before.op_type != "Cast" or types[before.input[0]] != FULL, node.name


def test_batch_norm_is_folded_before(full: onnx.ModelProto) -> None:
    convolved = {node.output[0] for node in full.graph.node if node.op_type == "Conv"}
    following = {node.op_type for node in full.graph.node if not convolved.isdisjoint(node.input)}
    assert following <= {"Relu", "Add", "Shape", "Reshape"}


@pytest.mark.parametrize("keep_io", [True, False])
def test_numbers(keep_io: bool, full: onnx.ModelProto, tmp_path: Path) -> None:
    """In ONNX Runtime, and with every result rounded to fp16; with padding that covers whole rows of the feature map."""
    typed, _ = to_fp16(full, keep_io)
    types = dtypes(typed)
    wanted = FULL if keep_io else HALF
    assert {types[name] for name in ("pixel_values", "logits", "pred_boxes")} == {wanted}
    assert types["pixel_mask"] == TensorProto.INT64
    twin, names = rounding_twin(typed)
    adding_twin, names_too = rounding_twin(typed, accumulates=True)
    assert names_too == names
    for seed, case in enumerate(CASES):
        inputs = make_inputs(case, 3, True, seed=50 + seed)
        expected = run(full, inputs, tmp_path)
        rounded = run(twin, inputs, tmp_path)
        assert rounded.pop(MAGNITUDES).shape == (len(names),)
        accumulated = run(adding_twin, inputs, tmp_path)
        short = case is CASES[0]  # a feature map of 2 x 2 places, no more than a tensor core adds at a time
        assert np.array_equal(accumulated["logits"], rounded["logits"]) is short
        given = run(typed, inputs, tmp_path)
        assert {value.dtype for value in given.values()} == {np.dtype(np.float32 if keep_io else np.float16)}
        for name, value in expected.items():
            for other in (given[name], rounded[name], accumulated[name]):
                difference = np.abs(other.astype(np.float32) - value).max()
                assert 1e-5 < difference <= TOLERANCES["fp16"].constant[name], (name, str(case))


def test_the_twin_rounds_what_onnx_runtime_does_not(tmp_path: Path) -> None:
    """1 + 2**-12 is 1 in fp16, and 300 * 300 is infinite."""
    model = tiny("Mul", [300.0])
    x = {"x": np.array([[1 + 2**-12, 300.0]], dtype=np.float32)}
    twin, names = rounding_twin(to_fp16(model)[0])
    assert run(to_fp16(model)[0], x, tmp_path)["y"].max() == pytest.approx(90000)
    found = run(twin, x, tmp_path)
    assert found["y"].tolist() == [[300.0, np.inf]]
    assert names == ["graph_input_cast0", "product", "last"]
    assert found[MAGNITUDES].tolist() == pytest.approx([300, 300, 90000])


@pytest.mark.parametrize("length", [1, 16, 33, 100])
def test_the_twin_adds_in_fp16(length: int, tmp_path: Path) -> None:
    """2048 + 1 is 2048 in fp16, where numbers of this size are even. A twin that adds in fp32 finds the ones."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "y"], ["z"], name="product")],
        "a_product_of_two_inputs",
        [helper.make_tensor_value_info("x", HALF, [1, 2, "n"]), helper.make_tensor_value_info("y", HALF, [1, "n", 3])],
        [helper.make_tensor_value_info("z", HALF, None)],
    )
    graph.output[0].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_value_info("z", HALF, [1, 2, 3]).type.tensor_type.shape
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x, y = np.zeros((1, 2, length), dtype=np.float32), np.ones((1, length, 3), dtype=np.float32)
    x[..., ::16] = 1  # the first of each part
    x[..., 0] = 2048
    parts = -(-length // 16)
    for accumulates, expected in ((True, 2048), (False, 2048 + parts - 1)):
        given = run(rounding_twin(model, accumulates)[0], {"x": x, "y": y}, tmp_path)["z"]
        assert np.all(given == np.float16(expected)), accumulates


def test_without_joining_the_mask_would_overflow(
    full: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the converter does by itself, and that this would be noticed."""
    inputs = make_inputs(CASES[1], 3, True, seed=0)

    def largest() -> float:
        return float(run(rounding_twin(to_fp16(full)[0])[0], inputs, tmp_path)[MAGNITUDES].max())

    assert largest() < LARGEST
    monkeypatch.setattr(casting, "_join_islands", lambda graph: None)
    assert largest() > 1e38


# ---- constants ----------------------------------------------------------------------------------------------------------


def tiny(operator: str, constant: list[float], weight: np.ndarray | None = None) -> onnx.ModelProto:
    """x (n, 2) times the unit matrix, or another, then one operator with a constant."""
    weight = np.eye(2, dtype=np.float32) if weight is None else weight.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"], name="product"),
            helper.make_node(operator, ["z", "c"], ["y"], name="last"),
        ],
        "g",
        [helper.make_tensor_value_info("x", FULL, ["n", 2])],
        [helper.make_tensor_value_info("y", FULL, ["n", 2])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(constant, dtype=np.float32), "c")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_weights_too_small_become_zero() -> None:
    just_below, above = 6.1e-5, 6.2e-5
    typed, report = to_fp16(tiny("Add", [1.0, 2.0], np.array([[1, just_below], [-1e-9, above]])))
    weights = {item.name: numpy_helper.to_array(item) for item in typed.graph.initializer}
    assert weights["w"].dtype == np.float16
    assert weights["w"].tolist() == [[1, 0], [0, np.float16(above)]]
    assert (report.flushed, report.fp16, report.fp32) == (2, 6, 0)
    assert just_below < SMALLEST < above


@pytest.mark.parametrize("value", [1e-6, -1e-7, 1e5, float(np.finfo(np.float32).min)])
def test_scalars_that_fp16_cannot_hold_keep_their_node_in_fp32(value: float) -> None:
    types = dtypes(to_fp16(tiny("Add", [value]))[0])
    assert (types["w"], types["c"], types["y"]) == (HALF, FULL, FULL)
    assert dtypes(to_fp16(tiny("Add", [0.5]))[0])["c"] == HALF


def test_weights_too_large_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"the weight 'w' reaches 7e\+04, and fp16 ends at 65504"):
        to_fp16(tiny("Add", [1.0], np.array([[1, 7e4], [0, 1]])))


def test_constants_of_both_kinds_of_nodes_are_kept_twice() -> None:
    model = tiny("Mul", [0.1])
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["s"], name="island"))
    model.graph.node.append(helper.make_node("Mul", ["s", "c"], ["after"], name="after"))
    model.graph.node.append(helper.make_node("MatMul", ["after", "w"], ["t"], name="second"))
    model.graph.node.append(helper.make_node("Mul", ["t", "c"], ["u"], name="fp16"))
    model.graph.output[0].name = "u"
    typed, _ = to_fp16(model)
    types = dtypes(typed)
    assert types["c"] == HALF
    assert types["c_fp32"] == FULL  # of the scores' island
    exact = {item.name: numpy_helper.to_array(item) for item in typed.graph.initializer}
    assert exact["c_fp32"].tolist() == [np.float32(0.1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array.astype(np.float32), r"the weight .* of (Conv|MatMul) .* is not fp16"),
        (lambda array: np.full_like(array, 1e-6), r"the fp16 constant .* holds values that are not finite or subnormal"),
        (lambda array: np.full_like(array, np.inf), r"the fp16 constant .* holds values that are not finite or subnormal"),
    ],
)
def test_what_is_not_fp16_is_noticed(change: Callable[[Any], Any], message: str, half: onnx.ModelProto) -> None:
    check_fp16(half)
    broken = copy.deepcopy(half)
    weight = next(item for item in broken.graph.initializer if item.data_type == HALF and len(item.dims) > 1)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    with pytest.raises(ArtifactError, match=message):
        check_fp16(broken)


# ---- export -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(full: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracing, which takes longest, replaced by its result."""
    monkeypatch.setattr(onnx_export, "trace", lambda *args: copy.deepcopy(full))


@pytest.mark.usefixtures("traced")
def test_export(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.onnx"
    result = export_onnx(load_checkpoint(tiny_checkpoint), file, ExportOptions(precision="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["half.onnx"]
    assert result.metadata.precision == "fp16"
    assert result.parity is not None
    assert (
        0.05 < result.parity.noise_floor["logits"] / result.parity.max_abs_diff["logits"] < 20
    )  # the same kind of rounding
    assert result.fp16 is not None
    assert result.fp16.rounded is not None
    assert result.fp16.rounded.passed
    for name, difference in result.parity.max_abs_diff.items():
        assert difference < result.fp16.rounded.max_abs_diff[name]  # the CPU rounds less
    assert result.fp16.largest is not None
    assert 1 < result.fp16.largest < LARGEST
    assert result.fp16.largest_node in {node.name for node in onnx.load(file).graph.node}
    assert "of 65504" in result.fp16.summary()
    assert result.to_dict()["fp16"]["weights"]["flushed"] == result.fp16.weights.flushed
    recorded = metadata_of(file)["parity"]["fp16"]
    assert recorded["largest"] == pytest.approx(result.fp16.largest)
    assert verify_file(file, tiny_checkpoint).passed


def metadata_of(file: Path) -> dict[str, Any]:
    (entry,) = [item for item in onnx.load(file).metadata_props if item.key == METADATA_KEY]
    return json.loads(entry.value)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("LARGEST", 1.0), "results do not fit into fp16, which ends at 65504; the first is that of .*, the largest is"),
        (("multiple", None), "with every result rounded to fp16, disagrees with its checkpoint"),
    ],
)
def test_what_fp16_breaks_is_not_written(
    limit: tuple[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit[0] == "LARGEST":
        monkeypatch.setattr(fp16_rounding, *limit)
    else:  # between what the file and what its twin is off by
        loaded = load_checkpoint(tiny_checkpoint)
        result = export_onnx(loaded, tmp_path / "known.onnx", ExportOptions(precision="fp16"))
        (tmp_path / "known.onnx").unlink()
        assert result.parity is not None
        assert result.fp16 is not None
        assert result.fp16.rounded is not None
        low, high = (max(item.ratio.values()) for item in (result.parity, result.fp16.rounded))
        assert low < high
        strict = replace(TOLERANCES["fp16"], multiple=(low * high) ** 0.5)
        monkeypatch.setattr(tolerances, "TOLERANCES", {**TOLERANCES, "fp16": strict})
    with pytest.raises(VerificationError, match=message):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "half.onnx", ExportOptions(precision="fp16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(precision="fp16", simplify=False), "an fp16 file is made from the simplified graph"),
        (ExportOptions(fp16_io=True), "add --precision fp16"),
        (ExportOptions(keep_fp32="attention"), "add --precision fp16"),
        (ExportOptions(precision="bf16"), "precision is 'bf16'; expected fp32 or fp16"),
        (ExportOptions(input="uint16"), "input is 'uint16'; expected float or uint8"),
    ],
)
def test_refuses_options(options: ExportOptions, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx", options)


def test_half_the_size(tmp_path: Path) -> None:
    """Of the demo checkpoint's file; of a tiny model's, the graph itself is too large a part."""
    options = ExportOptions(verify=False)
    full = export_onnx(load_checkpoint("demo"), tmp_path / "full.onnx", options).path
    onnx.save(to_fp16(onnx.load(full))[0], tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size <= 0.52 * full.stat().st_size
