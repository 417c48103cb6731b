"""Building engines on the double of TensorRT: profiles, precision, the gate, locks, Ctrl-C, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.engines.build import build_engine, build_with_fallback
from detr_export.engines.gate import engine_grid
from detr_export.engines.ladder import Step
from detr_export.engines.lock import build_lock
from detr_export.engines.options import BuildSettings, EngineOptions
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, default_profiles, parse_profile
from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar, sidecar_path
from detr_export.runtimes.errors import (
    ArtifactError,
    AttestationError,
    BackendError,
    InputError,
    OutputError,
    VerificationError,
)
from detr_export.runtimes.metadata import METADATA_KEY, Metadata
from detr_export.verification.cases import make_inputs
from tests.detr_export.recorder import Recorder
from tests.tensorrt_double import Knobs
from tests.tensorrt_double.fixtures import NEWEST, OLDEST, TEN, Install

SMALL = EngineProfile((1, 64, 64), (1, 64, 96), (2, 80, 96))
QUICK = EngineOptions(profiles=(SMALL,), verify=False)


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run at the same time do not wait for each other."""
    import tempfile

    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "locks"))


def fp16_graph(source: Path, target: Path, precision: str = "fp16") -> Path:
    """The graph with its convolutions' weights stored in fp16, cast back before use, as metadata then says."""
    model = onnx.load(str(source))
    weights = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "MatMul")}
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, f"{tensor.name}_fp16"))
            casts.append(helper.make_node("Cast", [tensor.name], [tensor.name.removesuffix("_fp16")], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return with_precision(model, target, precision)


def with_precision(model: onnx.ModelProto, target: Path, precision: str) -> Path:
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            item.value = json.dumps({**json.loads(item.value), "precision": precision})
    onnx.save(model, str(target))
    return target


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "locks")


# ---- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [NEWEST, TEN, OLDEST])
def test_builds_attests_verifies_and_writes(
    version: str, install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path
) -> None:
    knobs = install_tensorrt(version)
    progress = Recorder()
    output = tmp_path / "a.engine"
    result = build_engine(tiny_onnx_17, output, EngineOptions(profiles=(SMALL,)), progress)
    assert listing(tmp_path) == ["a.engine", "a.engine.json"]
    assert result.parity is not None
    assert result.parity.passed
    assert not result.parity.weak
    assert result.parity.cases == 6
    assert "verifying 5/6 2x80x96 (identical)" in progress.lines
    sidecar = read_sidecar(output)
    assert sidecar == result.sidecar
    assert (sidecar.precision, sidecar.library, sidecar.library_version) == ("fp32", "tensorrt", version)
    assert (sidecar.fallback, sidecar.gpu, sidecar.targets) == (None, "Test GPU", ((9, 0),))
    assert sidecar.verified
    assert sidecar.profiles == ("1x64x64:1x64x96:2x80x96",)
    assert sidecar.layers.keys() == {"fp32"}
    assert sidecar.metadata.parity == json.loads(json.dumps(result.parity.to_dict()))
    assert knobs.builds[0]["network_flags"] == (1 if version == OLDEST else 2)
    assert "TF32" not in knobs.builds[0]["flags"]  # on by default, and less than fp32
    assert not knobs.device.blocks
    json.dumps(result.to_dict())

    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    given = make_inputs(engine_grid([SMALL])[-1], 3, True, seed=3)
    with TensorRTSession(output) as session, OrtSession(tiny_onnx_17) as reference:
        expected = reference.run(given)
        for name, array in session.run(given).items():
            assert np.abs(array - expected[name]).max() <= 1e-5


def test_settings_reach_the_builder(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    settings = BuildSettings(
        workspace_mib=64, optimization_level=5, version_compatible=True, hardware_compatible=True, aux_streams=3
    )
    result = build_engine(tiny_onnx, tmp_path / "a.plan", EngineOptions(profiles=(SMALL,), settings=settings, verify=False))
    built = tensorrt.builds[0]
    assert built["workspace"] == 64 << 20
    assert built["optimization_level"] == 5
    assert built["aux_streams"] == 3
    assert built["version_compatible"]
    assert built["hardware_compatible"]
    assert result.sidecar.version_compatible
    assert result.sidecar.hardware_compatible
    assert result.sidecar.metadata.parity is None
    assert not result.sidecar.verified


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (BuildSettings(optimization_level=3), "--optimization-level"),
        (BuildSettings(aux_streams=1), "--aux-streams"),
        (BuildSettings(version_compatible=True), "--version-compatible"),
        (BuildSettings(hardware_compatible=True), "--hardware-compatible"),
    ],
)
def test_8_5_refuses_what_it_does_not_have(
    settings: BuildSettings, option: str, install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path
) -> None:
    install_tensorrt(OLDEST)
    with pytest.raises(BackendError, match=f"{option} needs TensorRT 8.6 or later, and this is 8.5.3.1; leave it out"):
        build_engine(tiny_onnx_17, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,), settings=settings))
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("version", "flags", "network"), [(NEWEST, [], 2), (TEN, [], 2), (OLDEST, ["FP16", "OBEY_PRECISION_CONSTRAINTS"], 1)]
)
def test_fp16_is_the_graphs_and_on_8_5_a_flag(
    version: str, flags: list[str], network: int, install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path
) -> None:
    knobs = install_tensorrt(version)
    library = tensorrt_api.tensorrt()
    generation = library.generation
    builder = library.trt.Builder(library.logger)
    parsed = generation.create_network(builder)
    library.trt.OnnxParser(parsed, library.logger).parse_from_file(str(tiny_onnx))
    config = builder.create_builder_config()
    generation.set_precision(config, parsed, "fp16")
    builder.build_serialized_network(parsed, config)
    assert (knobs.builds[0]["flags"], knobs.builds[0]["network_flags"]) == (flags, network)
    assert (knobs.builds[0]["pinned"] > 0) == (version == OLDEST)  # what the graph has in fp32 stays there


def test_8_5_pins_no_computation_of_shapes(install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path) -> None:
    """Half-sizes of the mask are floats that the CPU computes; the double, as TensorRT, refuses a build that pins them."""
    knobs = install_tensorrt(OLDEST)
    library = tensorrt_api.tensorrt()
    builder = library.trt.Builder(library.logger)
    network = library.generation.create_network(builder)
    library.trt.OnnxParser(network, library.logger).parse_from_file(str(tiny_onnx_17))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    float_shapes = [layer for layer in layers if all(map(is_float_shape, (layer.get_input(0), layer.get_output(0))))]
    assert float_shapes
    config = builder.create_builder_config()
    library.generation.set_precision(config, network, "fp16")
    assert all(layer.precision is None for layer in float_shapes)
    assert builder.build_serialized_network(network, config) is not None
    assert knobs.builds[0]["pinned"] > 0
    float_shapes[0].precision = library.trt.DataType.FLOAT
    assert builder.build_serialized_network(network, config) is None


def is_float_shape(tensor: Any) -> bool:
    return bool(tensor.is_shape_tensor and tensor.dtype.name == "FLOAT")


def test_a_version_compatible_engine_of_8_6_has_no_plugin(
    install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path
) -> None:
    install_tensorrt("8.6.1.6")
    model = onnx.load(str(tiny_onnx_17))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, dtype=np.float32), "ones"))
    model.graph.node.append(helper.make_node("InstanceNormalization", ["pixel_values", "ones", "ones"], ["normed"]))
    onnx.save(model, tmp_path / "a.onnx")
    settings = BuildSettings(version_compatible=True)
    result = build_engine(
        tmp_path / "a.onnx", tmp_path / "a.engine", EngineOptions(profiles=(SMALL,), settings=settings, verify=False)
    )
    assert result.sidecar.version_compatible


# ---- profiles -----------------------------------------------------------------------------------------------------------


def test_parses_profiles() -> None:
    assert parse_profile("1x800x800:1x800x1066:4x800x1333") == EngineProfile((1, 800, 800), (1, 800, 1066), (4, 800, 1333))
    assert parse_profile("2x640x640") == EngineProfile((2, 640, 640), (2, 640, 640), (2, 640, 640))
    assert str(parse_profile("1x2x3:1x2x4:2x5x6")) == "1x2x3:1x2x4:2x5x6"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1x2",
        "1x2x3:4x5x6",
        "1x2x3:1x2x4:1x2x5:1x2x6",
        "ax2x3",
        "1x2x3:1x2x2:1x2x4",
        "0x2x3",
        "1x2x3:1x2x4:1x1x5",
        "1X2X3",
    ],
)
def test_refuses_profiles(text: str) -> None:
    with pytest.raises(InputError, match=f"profile is '{text}'; expected"):
        parse_profile(text)


def test_default_profiles_of_detr() -> None:
    size = {"shortest_edge": 800, "longest_edge": 1333}
    assert [str(profile) for profile in default_profiles({"size": size}, 1)] == [
        "1x32x800:1x800x1066:1x800x1333",
        "1x800x32:1x1066x800:1x1333x800",
        "1x800x800:1x800x800:1x1333x1333",
    ]
    assert [str(profile) for profile in default_profiles({"size": size}, 8)[3:]] == [
        "2x32x800:8x800x1066:8x800x1333",
        "2x800x32:8x1066x800:8x1333x800",
        "2x800x800:8x800x800:8x1333x1333",
    ]


@pytest.mark.parametrize("height", range(100, 2000, 237))
@pytest.mark.parametrize("width", range(90, 2100, 331))
def test_every_image_and_mixed_batch_fits_a_default_profile(height: int, width: int) -> None:
    from detr_export.runtimes.processing.sizes import output_size

    size = {"shortest_edge": 800, "longest_edge": 1333}
    profiles = default_profiles({"size": size}, 2)
    one, other = output_size(height, width, size), output_size(480, 640, size)
    batch = (max(one[0], other[0]), max(one[1], other[1]))
    for shape in ((1, *one), (2, *one), (2, *batch)):
        assert any(
            all(low <= value <= high for low, value, high in zip(profile.minimum, shape, profile.maximum, strict=True))
            for profile in profiles
        ), shape


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"height": 480, "width": 640}}, ["1x480x640:1x480x640:1x480x640"]),
        ({"size": {"max_height": 480, "max_width": 640}}, ["1x32x32:1x480x640:1x480x640"]),
        (
            {"size": {"shortest_edge": 800, "longest_edge": 1333}, "pad_size": {"height": 9, "width": 8}},
            ["1x9x8:1x9x8:1x9x8"],
        ),
    ],
)
def test_default_profiles_of_other_processors(processor: dict[str, Any], expected: list[str]) -> None:
    assert [str(profile) for profile in default_profiles(processor, 1)] == expected


def test_a_processor_without_a_limit_needs_profiles() -> None:
    with pytest.raises(InputError, match="without an upper limit; give the shapes with --profile"):
        default_profiles({"size": {"shortest_edge": 800, "longest_edge": None}}, 1)


def test_the_grid_has_every_corner_and_mixed_batches() -> None:
    cases = engine_grid([SMALL, SMALL])
    assert [str(case) for case in cases] == [
        "1x64x64",
        "1x64x64 (1 padded)",
        "1x64x96",
        "1x64x96 (1 padded)",
        "2x80x96 (identical)",
        "2x80x96 (1 padded)",
    ]
    same = make_inputs(cases[4], 3, True, 0)["pixel_values"]
    assert np.array_equal(same[0], same[1])
    mixed = make_inputs(cases[5], 3, True, 0)["pixel_values"]
    assert not np.array_equal(mixed[0], mixed[1])


# ---- precision ----------------------------------------------------------------------------------------------------------


def test_an_engine_of_another_precision_is_refused(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    tensorrt.compute_precision = "HALF"
    with pytest.raises(AttestationError, match=r"not what was asked for: .* \d+ of \d+ .* in fp16 instead of fp32"):
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)
    assert listing(tmp_path) == []


def test_an_engine_that_does_not_tell_is_refused(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    tensorrt.detailed = False
    with pytest.raises(AttestationError, match="cannot be attested: TensorRT's records show no kernel that computes"):
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)


def small_model(nodes: list[Any], weight: np.ndarray, kind: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [2, 2])],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.float32(0.1), "s"),
            numpy_helper.from_array(np.int8(0), "z"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_metadata_that_contradicts_the_graph(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    lying = with_precision(onnx.load(str(tiny_onnx)), tmp_path / "lying.onnx", "fp16")
    with pytest.raises(ArtifactError, match=r"lying.onnx says that it is fp16 and its graph is fp32"):
        build_engine(lying, tmp_path / "a.engine", QUICK)


# ---- the gate -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disagreeing(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that holds half precision, by which the double knows where to compute wrongly."""
    return fp16_graph(tiny_onnx, tmp_path_factory.mktemp("half") / "half.onnx", "fp32")


def test_an_engine_that_disagrees_is_not_written(tensorrt: Knobs, disagreeing: Path, tmp_path: Path) -> None:
    tensorrt.wrong_by = 0.5
    (tmp_path / "a.engine").write_bytes(b"before")
    with pytest.raises(
        VerificationError, match=r"a.engine disagrees with its checkpoint: logits differs by \d.\de-01, .*doctor"
    ):
        build_engine(disagreeing, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,), overwrite=True))
    assert listing(tmp_path) == ["a.engine"]
    assert (tmp_path / "a.engine").read_bytes() == b"before"
    assert not tensorrt.device.blocks


@pytest.mark.parametrize(
    ("step", "next_one"),
    [("fp16", "the attention"), ("fp32-attention", "the transformer"), ("fp32-transformer", "everything")],
)
def test_names_what_to_keep_in_fp32_next(
    step: str, next_one: str, tensorrt: Knobs, disagreeing: Path, tmp_path: Path
) -> None:
    tensorrt.wrong_by = 0.5
    with pytest.raises(VerificationError, match=f"next keep {next_one} in fp32, which --fallback tries by itself"):
        build_engine(disagreeing, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,)), step=step)


def test_fallback_takes_the_first_that_agrees_and_records_it(
    tensorrt: Knobs, disagreeing: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    tensorrt.wrong_by = 0.5
    asked: list[str] = []

    def make(step: Step) -> Path:
        asked.append(step.name)
        return tiny_onnx if step.name == "fp32-transformer" else disagreeing

    progress = Recorder()
    result = build_with_fallback(make, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,)), progress)
    assert asked == ["fp16", "fp32-attention", "fp32-transformer"]
    assert result.sidecar.fallback == "fp32-transformer"
    assert sum("is not good enough, trying" in line for line in progress.lines) == 2
    tensorrt.build_error = "no kernel"
    with pytest.raises(BackendError, match="TensorRT built no engine: no kernel"):  # only a disagreement leads on
        build_with_fallback(make, tmp_path / "b.engine", EngineOptions(profiles=(SMALL,)))
    assert asked == ["fp16", "fp32-attention", "fp32-transformer", "fp16"]


def test_fallback_goes_on_after_an_engine_of_another_precision(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def make(step: Step) -> Path:
        asked.append(step.name)
        tensorrt.compute_precision = None if step.name == "fp32-transformer" else "HALF"  # the graph is fp32
        return tiny_onnx

    progress = Recorder()
    result = build_with_fallback(make, tmp_path / "a.engine", QUICK, progress)
    assert asked == ["fp16", "fp32-attention", "fp32-transformer"]
    assert result.sidecar.fallback == "fp32-transformer"
    lines = [line for line in progress.lines if "is not good enough, trying fp32-attention: the engine is not what" in line]
    assert len(lines) == 1


def test_no_other_defect_of_a_file_leads_on(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    lying = with_precision(onnx.load(str(tiny_onnx)), tmp_path / "lying.onnx", "fp16")
    asked: list[str] = []
    with pytest.raises(ArtifactError, match="says that it is fp16 and its graph is fp32"):
        build_with_fallback(lambda step: (asked.append(step.name), lying)[1], tmp_path / "a.engine", QUICK)
    assert asked == ["fp16"]


def test_when_nothing_agrees(tensorrt: Knobs, disagreeing: Path, tmp_path: Path) -> None:
    tensorrt.wrong_by = 0.5
    with pytest.raises(VerificationError, match="try another version"):
        build_with_fallback(lambda step: disagreeing, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,)))
    assert listing(tmp_path) == []


# ---- several builders, and those that are stopped -----------------------------------------------------------------------


def test_two_builders_of_one_engine_wait_for_each_other(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    waiting = threading.Event()
    tensorrt.on_step = lambda step: waiting.wait(30) and None

    class Heard(Recorder):
        def stage(self, line: str) -> None:
            super().stage(line)
            if line.startswith("waiting for another process"):
                waiting.set()

    heard = Heard()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: build_engine(tiny_onnx, tmp_path / "a.engine", QUICK, heard), range(2)))
    assert sorted(result.built_here for result in results) == [False, True]
    assert len(tensorrt.builds) == 1
    assert results[0].sidecar == results[1].sidecar


def test_a_file_that_came_in_between_is_not_overwritten(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.engine"
    tensorrt.on_step = lambda step: None
    original = os.replace
    from detr_export.engines import build as engine

    def late(key: str, *arguments: Any) -> Any:
        output.write_bytes(b"another's")
        return build_lock(key, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "build_lock", late)
        with pytest.raises(OutputError, match="was written by another process in the meantime"):
            build_engine(tiny_onnx, output, QUICK)
    assert output.read_bytes() == b"another's"
    assert os.replace is original


def hold(key: str, folder: str, held: Any) -> None:
    import tempfile

    tempfile.tempdir = folder
    with build_lock(key):
        held.set()
        time.sleep(60)


def test_a_killed_builder_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=("key", str(tmp_path / "locks"), held))
    process.start()
    assert held.wait(60)

    class Killing(Recorder):
        def stage(self, line: str) -> None:
            super().stage(line)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    killing = Killing()
    with build_lock("other", killing):
        assert not killing.lines
    with build_lock("key", killing, "waiting for the other one"):
        assert killing.lines == ["waiting for the other one"]
    process.join()


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Python's own handler: a shell that starts the tests in the background makes them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("version", [NEWEST, OLDEST])
def test_ctrl_c_cancels(version: str, install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path) -> None:
    knobs = install_tensorrt(version)
    done = threading.Event()
    reached: list[int] = []

    def on_step(step: int) -> None:
        reached.append(step)
        if step == 1:
            signal.raise_signal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else os.kill(
                os.getpid(), signal.SIGINT
            )
            time.sleep(1)
        if step == 4:
            done.set()

    knobs.on_step = on_step
    with pytest.raises(KeyboardInterrupt):
        build_engine(tiny_onnx_17, tmp_path / "a.engine", QUICK)
    if version == NEWEST:
        assert reached == [0, 1]
    else:
        assert done.wait(30)  # it cannot be stopped, and nobody waits for it
    assert listing(tmp_path) == []
    knobs.on_step = lambda step: None
    build_engine(tiny_onnx_17, tmp_path / "a.engine", QUICK)  # the lock is free


def test_progress(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    progress = Recorder()
    build_engine(tiny_onnx, tmp_path / "a.engine", QUICK, progress)
    assert progress.steps == [(done, 5, "Building Engine") for done in range(1, 6)]


# ---- timing cache -------------------------------------------------------------------------------------------------------


def test_the_timing_cache_is_read_and_written(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    options = EngineOptions(profiles=(SMALL,), verify=False, timing_cache=tmp_path / "timing.cache", overwrite=True)
    for _ in range(2):
        build_engine(tiny_onnx, tmp_path / "a.engine", options)
    first, second = tensorrt.timing_caches
    assert first == b""
    assert second.startswith(b"tactic")
    assert (tmp_path / "timing.cache").read_bytes() == second
    (tmp_path / "timing.cache").write_bytes(b"junk")
    with pytest.raises(BackendError, match="the timing cache is of another GPU or TensorRT, or damaged"):
        build_engine(tiny_onnx, tmp_path / "a.engine", options)


# ---- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.onnx", r"a.onnx does not end in .engine, .plan, .trt"),
        ("there.engine", "there.engine exists; add --overwrite"),
    ],
)
def test_refuses_outputs_before_any_work(name: str, message: str, tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "there.engine").write_bytes(b"before")
    with pytest.raises(OutputError, match=message):
        build_engine(tiny_onnx, tmp_path / name, QUICK)
    assert tensorrt.builds == []


def test_a_graph_that_tensorrt_does_not_read(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    tensorrt.parse_error = "No importer registered for op: LayerNormalization"
    with pytest.raises(ArtifactError, match=r"does not read .*tiny.onnx: No importer registered for op: LayerNormalization"):
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)


def test_a_build_that_fails(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensorrt.build_error = "Could not find any implementation\nfor node conv1"
    with pytest.raises(BackendError, match="TensorRT built no engine: Could not find any implementation for node conv1"):
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)
    assert "a warning of the builder" in caplog.text
    assert listing(tmp_path) == []


def test_a_foreign_onnx_file(tensorrt: Knobs, tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="p")
    onnx.save(small_model([product], np.eye(2, dtype=np.float32), TensorProto.FLOAT), str(tmp_path / "f.onnx"))
    with pytest.raises(ArtifactError, match=r"f.onnx has no detr-export metadata; export it with: detr-export onnx"):
        build_engine(tmp_path / "f.onnx", tmp_path / "a.engine", QUICK)


def test_a_source_that_is_gone(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(str(tiny_onnx))
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            document = Metadata.from_json(item.value)
            item.value = json.dumps({**json.loads(document.to_json()), "source": {}})
    onnx.save(model, str(tmp_path / "s.onnx"))
    with pytest.raises(ArtifactError, match="does not say which checkpoint it came from; add --checkpoint"):
        build_engine(tmp_path / "s.onnx", tmp_path / "a.engine", EngineOptions(profiles=(SMALL,)))
    assert sorted(listing(tmp_path)) == ["s.onnx"]


def test_nothing_else_is_left_in_the_temporary_folder(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    build_engine(tiny_onnx, tmp_path / "a.engine", EngineOptions(profiles=(SMALL,)))
    left = [path for path in (tmp_path / "locks").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []
    assert sidecar_path(tmp_path / "a.engine").is_file()
