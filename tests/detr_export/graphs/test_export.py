"""Exported files: their numbers against transformers', their graphs, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from detr_export import cli
from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.graphs import export as onnx_export
from detr_export.graphs.checks import check_graph, operator_counts
from detr_export.graphs.export import Draft, export_onnx, exported, verify_file
from detr_export.graphs.options import ExportOptions
from detr_export.loading import load_model
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import ArtifactError, OutputError, VerificationError
from detr_export.runtimes.metadata import METADATA_KEY, Metadata
from detr_export.verification.cases import GRID, Case, make_inputs
from detr_export.verification.tolerances import TOLERANCES
from tests import models
from tests.detr_export.recorder import Recorder

# None of them is in the verification grid or was traced: odd sizes, one to five images, padding of every kind.
CASES = (
    Case(64, 64, ((64, 64),)),
    Case(33, 95, ((33, 95), (33, 60))),
    Case(129, 127, ((129, 127), (1, 1), (128, 64))),
    Case(211, 160, ((211, 3), (5, 160), (211, 160), (100, 100))),
    Case(96, 400, tuple((96 - 9 * index, 400 - 71 * index) for index in range(5))),
    Case(31, 17, ((31, 17), (30, 17))),
)
LAYER_NORMS = 2 * 2 + 3 * 2 + 1 - 1  # of two encoder and two decoder layers; the first norm of the decoder is a constant


DEFAULTS = ExportOptions()


@dataclass(frozen=True)
class Variant:
    config: dict[str, Any]
    options: ExportOptions = DEFAULTS
    layer_norms: int = LAYER_NORMS
    slack: float = 1.0  # times the tolerances, for weights that amplify rounding


VARIANTS = {
    "default": Variant({}),
    "no-mask, opset 23": Variant({}, ExportOptions(pixel_mask=False, opset=23)),
    "no-simplify, opset 17": Variant({}, ExportOptions(simplify=False, opset=17)),
    "learned, auxiliary": Variant(
        {"position_embedding_type": "learned", "auxiliary_loss": True}, layer_norms=LAYER_NORMS + 2
    ),
    "one-channel": Variant({"backbone": "resnet18", "num_channels": 1}),
    # Seeded weights damp the residual branches of ResNets alone; here even PyTorch is 5e-4 away from float64, and the gate,
    # whose limit follows from that, lets the file pass.
    "mobilenet, same padding": Variant({"backbone": "tf_mobilenetv3_small_075"}, slack=3),
}


def save(tmp_path: Path, **changes: Any) -> tuple[Path, Any]:
    """A checkpoint of the tiny model with some fields changed, and the oracle that wrote it."""
    config = models.config(**changes)
    oracle = models.oracle(config, models.seeded(config).state_dict())
    return models.save_checkpoint(oracle, tmp_path / "checkpoint"), oracle


def metadata_of(file: Path) -> dict[str, Any]:
    (entry,) = [item for item in onnx.load(str(file)).metadata_props if item.key == METADATA_KEY]
    return json.loads(entry.value)


@torch.no_grad()
def assert_same_numbers(file: Path, oracle: Any, variant: Variant, channels: int, cases: tuple[Case, ...]) -> None:
    """Compares a file with the oracle in float64: its own rounding in float32 is larger than the file's."""
    oracle = oracle.double()
    with OrtSession(file) as session:
        for seed, case in enumerate(cases):
            inputs = make_inputs(case, channels, variant.options.pixel_mask, seed=100 + seed)
            given = session.run(inputs)
            exact = {"pixel_values": torch.from_numpy(inputs["pixel_values"]).double()}
            if variant.options.pixel_mask:
                exact["pixel_mask"] = torch.from_numpy(inputs["pixel_mask"])
            expected = oracle(**exact)
            for name in given:
                tolerance = TOLERANCES["fp32"].constant[name]
                wanted = expected[name].numpy()
                assert given[name].shape == wanted.shape
                difference = float(np.abs(given[name] - wanted).max())
                assert difference <= tolerance * variant.slack, (name, str(case))
                varied = len(wanted) == 1 or float(np.abs(wanted[0] - wanted[-1]).max()) > 50 * tolerance
                assert varied, (name, str(case))  # or agreement would prove little


@pytest.mark.parametrize("name", VARIANTS)
def test_export(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    directory, oracle = save(tmp_path, **variant.config)
    checkpoint = load_checkpoint(directory)
    channels, options = checkpoint.config.num_channels, variant.options
    learned = checkpoint.config.position_embedding_type == "learned"
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "model.onnx"
    progress = Recorder()

    result = export_onnx(checkpoint, file, options, progress)

    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]  # no external data, no temporary file
    assert result.path == file
    assert result.size_bytes == file.stat().st_size
    assert ("simplifying" in progress.lines) is options.simplify
    assert (result.parity is not None) is options.verify
    if result.parity is not None:
        assert result.parity.passed
        assert not result.parity.weak
        assert result.parity.cases == len(GRID)
    # transformers looks learned positions up for every stage, and of the first, at stride 4, only 50 are there
    cases = tuple(case for case in CASES if not learned or max(case.height, case.width) <= 50 * 4)
    assert_same_numbers(file, oracle, variant, channels, cases)

    model = onnx.load(str(file))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == options.opset
    inputs = {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    expected = {"pixel_values": ("batch", channels, "height", "width"), "pixel_mask": ("batch", "height", "width")}
    assert inputs == (expected if options.pixel_mask else {"pixel_values": expected["pixel_values"]})
    assert [value.name for value in model.graph.output] == ["logits", "pred_boxes"]
    operators = operator_counts(model)
    assert operators["LayerNormalization"] == variant.layer_norms
    assert not set(operators) & {"If", "Loop", "Scan", "NonZero", "Resize", "RandomNormal", "CumSum"}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    for tensor in model.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all(), tensor.name

    about = metadata_of(file)
    assert about["task"] == "detection"
    assert {int(index): label for index, label in about["id2label"].items()} == models.LABELS
    assert about["processor"] == checkpoint.processor.to_dict()
    assert about["pixel_mask"] is options.pixel_mask
    assert (about["precision"], about["opset"], about["format_version"]) == ("fp32", options.opset, 1)
    limit = 50 * 32 if learned else None
    assert about["ranges"] == {"batch": [1, None], "height": [1, limit], "width": [1, limit]}
    assert about["source"] == {"name": str(directory), "sha256": checkpoint.sha256}
    assert {"detr-export", "torch", "onnx", "onnxruntime", "python"} <= set(about["tools"])
    if options.verify:
        assert about["parity"]["passed"] is True
        assert set(about["parity"]["max_abs_diff"]) == {"logits", "pred_boxes"}
    assert model.producer_name == "detr-export"


@pytest.mark.timeout(900)
@torch.no_grad()
def test_resnet50_at_full_size(tmp_path: Path) -> None:
    config = models.config(backbone="resnet50", d_model=256, encoder_attention_heads=8, decoder_attention_heads=8)
    model = models.seeded(config)
    directory = models.save_checkpoint(models.oracle(config, model.state_dict()), tmp_path / "checkpoint")
    file = export_onnx(load_checkpoint(directory), tmp_path / "r50.onnx", ExportOptions(verify=False)).path
    assert metadata_of(file)["parity"] is None
    with OrtSession(file) as session:
        for case in (
            Case(480, 640, ((480, 640),)),
            Case(799, 801, ((799, 801), (640, 801), (799, 333))),
            Case(1333, 800, ((1333, 800), (1000, 750))),
        ):
            inputs = make_inputs(case, 3, True, seed=7)
            given = session.run(inputs)
            expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
            for name in given:
                tolerance = TOLERANCES["fp32"].constant[name]
                difference = float(np.abs(given[name] - expected[name].numpy()).max())
                assert difference <= tolerance, (name, str(case))


# ---- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@functools.cache
def traced_once(trace: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """The exporter's own tracing, done once: for tests of what happens around it."""
    made: list[onnx.ModelProto] = []

    def instant(*args: object) -> onnx.ModelProto:
        if not made:
            made.append(trace(*args))
        return copy.deepcopy(made[0])

    return instant


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "trace", traced_once(onnx_export.trace))


QUICK = ExportOptions(simplify=False, verify=False)


@pytest.mark.usefixtures("instant")
def test_overwriting_is_asked_for(loaded: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"a.onnx exists; add --overwrite"):
        export_onnx(loaded, file, QUICK)
    assert file.read_bytes() == b"old"
    export_onnx(loaded, file, ExportOptions(simplify=False, verify=False, overwrite=True))
    assert metadata_of(file)["parity"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.usefixtures("instant")
def test_the_folder_is_made(loaded: Checkpoint, tmp_path: Path) -> None:
    assert export_onnx(loaded, tmp_path / "b" / "c" / "a.onnx", QUICK).path.is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/a.onnx", "is not a folder that this user may write to"),
        ("file/deeper/a.onnx", "is not a folder that this user may write to"),
        ("folder.onnx", "is a folder; give the name of a file"),
        ("model", r"does not end in .onnx, .* name it .*model.onnx"),
        ("model.json", r"does not end in .onnx"),
    ],
)
def test_refuses_outputs(name: str, message: str, loaded: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=message):
        export_onnx(loaded, tmp_path / name, QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.onnx"]


@pytest.mark.parametrize("opset", [0, 16, 26])
def test_refuses_opsets(opset: int, loaded: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"opset is {opset}; expected 17 to 25"):
        export_onnx(loaded, tmp_path / "a.onnx", ExportOptions(opset=opset))


def test_a_fixed_padding_needs_the_mask(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.processor.pad_size = {"height": 200, "width": 200}
    with pytest.raises(ArtifactError, match="such a model needs its pixel_mask"):
        export_onnx(checkpoint, tmp_path / "a.onnx", ExportOptions(pixel_mask=False))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArtifactError("no"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("function", ["compare", "simplify", "check_graph"])
def test_a_failing_export_leaves_the_old_file(
    function: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Checkpoint
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    tiny = helper.make_model(helper.make_graph([], "g", [], []))
    monkeypatch.setattr(onnx_export, "trace", lambda *args: tiny)
    monkeypatch.setattr(onnx_export, "simplify", lambda proto, *args: proto)
    monkeypatch.setattr(onnx_export, "check_graph", lambda *args: None)
    monkeypatch.setattr(onnx_export, "open_session", lambda file, **options: _Opened())
    monkeypatch.setattr(onnx_export, function, fail)
    file = tmp_path / "a.onnx"
    file.write_bytes(b"old")
    with pytest.raises(type(error)):
        export_onnx(loaded, file, ExportOptions(overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert file.read_bytes() == b"old"


@pytest.mark.usefixtures("instant")
def test_a_draft_is_looked_at_before_it_moves(loaded: Checkpoint, tmp_path: Path) -> None:
    file, options = tmp_path / "a.onnx", replace(QUICK, overwrite=True)
    file.write_bytes(b"old")

    def refuse(draft: Draft) -> None:
        assert metadata_of(draft.path)["task"] == "detection"
        assert draft.path.suffix == ".onnx"
        assert file.read_bytes() == b"old"
        raise VerificationError("not good enough")

    with pytest.raises(VerificationError, match="not good enough"), exported(loaded, file, options) as draft:
        refuse(draft)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert file.read_bytes() == b"old"
    with exported(loaded, file, options) as draft:
        assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert draft.result.path == file
    assert draft.result.size_bytes == file.stat().st_size


class _Opened:
    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.usefixtures("instant")
def test_a_full_disk_is_an_output_error(loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
        export_onnx(loaded, tmp_path / "a.onnx", QUICK)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_is_an_error(loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("Failed to export\nmany\nlines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ArtifactError, match=r"PyTorch cannot export this model: Failed to export$"):
        export_onnx(loaded, tmp_path / "a.onnx", QUICK)


def sabotage(proto: onnx.ModelProto, *args: object) -> onnx.ModelProto:
    """Shifts the bias of the class logits by 0.01, a thousandth of what images differ by."""
    (bias,) = [item for item in proto.graph.initializer if item.name.endswith("class_labels_classifier.bias")]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    return proto


@pytest.mark.usefixtures("instant")
def test_a_sabotaged_graph_is_never_written(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "simplify", sabotage)
    with pytest.raises(
        VerificationError,
        match=r"the exported file disagrees .* logits differs by 1.0e-02, .* x the noise floor of .*e-0[56] ",
    ):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    result = CliRunner().invoke(cli.app, ["onnx", str(tiny_checkpoint), "-o", str(tmp_path / "a.onnx")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: the exported file disagrees with its checkpoint: logits")
    assert not list(tmp_path.iterdir())


def test_verify_file(tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert verify_file(tiny_onnx, tiny_checkpoint).passed
    onnx.save_model(sabotage(onnx.load(str(tiny_onnx))), str(tmp_path / "other.onnx"))
    parity = verify_file(tmp_path / "other.onnx", tiny_checkpoint)
    assert not parity.passed
    assert parity.max_abs_diff["logits"] == pytest.approx(0.01, rel=0.05)
    assert parity.max_abs_diff["pred_boxes"] < 1e-5


def test_verify_file_without_metadata_and_mask(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    export_onnx(checkpoint, tmp_path / "a.onnx", ExportOptions(pixel_mask=False, simplify=False, verify=False))
    model = onnx.load(str(tmp_path / "a.onnx"))
    del model.metadata_props[:]
    onnx.save_model(model, str(tmp_path / "bare.onnx"))
    parity = verify_file(tmp_path / "bare.onnx", tiny_checkpoint)
    assert parity.passed
    assert parity.cases == len(GRID)


def test_verify_file_against_another_architecture(tiny_onnx: Path, tmp_path: Path) -> None:
    directory, _ = save(tmp_path, num_queries=7)
    with pytest.raises(ArtifactError, match=r"logits has shape \(1, 9, 6\) .* expected \(1, 7, 6\)"):
        verify_file(tiny_onnx, directory)


def test_the_model_stays_as_it_was(loaded: Checkpoint, tmp_path: Path) -> None:
    model = load_model(loaded)
    before = {name: value.clone() for name, value in loaded.state_dict.items()}
    export_onnx(loaded, tmp_path / "a.onnx", QUICK)
    assert not model.training
    assert all(torch.equal(loaded.state_dict[name], value) for name, value in before.items())


@pytest.mark.usefixtures("instant")
def test_result_to_dict(loaded: Checkpoint, tmp_path: Path) -> None:
    result = export_onnx(loaded, tmp_path / "a.onnx", QUICK)
    document = json.loads(json.dumps(result.to_dict()))
    assert document["path"] == str(tmp_path / "a.onnx")
    assert document["metadata"]["parity"] is None
    assert Metadata.from_json(json.dumps(document["metadata"])) == result.metadata


# ---- graph rules --------------------------------------------------------------------------------------------------------


def graph(
    *nodes: onnx.NodeProto,
    shape: tuple[str | int, ...] = ("n", 2),
    initializers: tuple[onnx.TensorProto, ...] = (),
    opset: int = 18,
    domain: str = "",
) -> onnx.ModelProto:
    """A model from x to y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    made = helper.make_graph(nodes or (helper.make_node("Relu", ["x"], ["y"]),), "g", [x], [y], initializers)
    return helper.make_model(made, opset_imports=imports, ir_version=9)


def tensor(*values: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float32), "c")


NODE = helper.make_node
ADD = NODE("Add", ["x", "c"], ["y"])


def test_a_plain_graph_passes() -> None:
    check_graph(graph(), 0, 18, {"x": ("n", 2)})
    check_graph(graph(ADD, initializers=(tensor(1, 2),)), 0, 18, {"x": ("n", 2)})
    check_graph(graph(NODE("Constant", [], ["c"], value_float=1.0), ADD), 0, 18, {"x": ("n", 2)})
    check_graph(graph(NODE("Constant", [], ["c"], value_ints=[1]), NODE("Relu", ["x"], ["y"])), 0, 18, {"x": ("n", 2)})


@pytest.mark.parametrize(
    ("model", "norms", "inputs", "message"),
    [
        (graph(NODE("Nope", ["x"], ["y"])), 0, {"x": ("n", 2)}, "the graph is not valid ONNX: No Op registered for Nope"),
        (graph(opset=17), 0, {"x": ("n", 2)}, "produced opset 17 instead of 18; choose an opset from 17 to 25"),
        (graph(NODE("A", ["x"], ["y"], domain="my"), domain="my"), 0, {"x": ("n", 2)}, "outside ONNX's own set: my"),
        (graph(NODE("RandomNormalLike", ["x"], ["y"])), 0, {"x": ("n", 2)}, "holds RandomNormalLike, which"),
        (
            graph(NODE("NonZero", ["x"], ["i"]), NODE("Cast", ["i"], ["y"], to=TensorProto.FLOAT)),
            0,
            {"x": ("n", 2)},
            "holds NonZero, which deployment runtimes do not support",
        ),
        (
            graph(NODE("CumSum", ["x", "axis"], ["y"]), initializers=(numpy_helper.from_array(np.array(0), "axis"),)),
            0,
            {"x": ("n", 2)},
            "holds CumSum, which deployment runtimes do not support",
        ),
        (graph(), 3, {"x": ("n", 2)}, "holds 0 LayerNormalization nodes instead of 3"),
        (graph(shape=(1, 2)), 0, {"x": ("n", 2)}, r"input x has dimensions \(1, 2\) instead of \('n', 2\)"),
        (graph(shape=("m", 2)), 0, {"x": ("n", 2)}, r"input x has dimensions \('m', 2\) instead of"),
        (graph(), 0, {"z": ("n", 2)}, "the graph has no input z"),
        (graph(), 0, {"x": ("n", 2), "z": ("n",)}, "the graph has no input z"),
        (graph(), 0, {}, "input x has dimensions .* instead of None"),
        (graph(ADD, initializers=(tensor(1, np.nan),)), 0, {"x": ("n", 2)}, "constant 'c' holds values that are not finite"),
        (
            graph(NODE("Constant", [], ["c"], value=tensor(np.inf)), ADD),
            0,
            {"x": ("n", 2)},
            "constant 'c' holds values that are not finite",
        ),
        (
            graph(NODE("Constant", [], ["c"], value_float=float("-inf")), ADD),
            0,
            {"x": ("n", 2)},
            "constant 'c' holds values that are not finite",
        ),
        (
            graph(NODE("Constant", [], ["c"], value_floats=[1.0, float("inf")]), ADD),
            0,
            {"x": ("n", 2)},
            "constant 'c' holds values that are not finite",
        ),
    ],
)
def test_refuses_graphs(model: onnx.ModelProto, norms: int, inputs: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        check_graph(model, norms, 18, inputs)
    assert "\n" not in str(caught.value)
