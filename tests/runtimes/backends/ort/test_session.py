"""ONNX Runtime's session: devices, options, closing, damage, and several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import metadata as distributions
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError
from detr_export.runtimes.metadata import METADATA_KEY
from detr_export.runtimes.session import TensorSpec
from detr_export.verification.cases import Case, make_inputs
from tests import models

INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)


def adder(path: Path, location: str | None = None, **properties: str) -> Path:
    """A model that adds a weight, optionally one in another file, over dimensions without names."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy")
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, properties)
    path.write_bytes(model.SerializeToString())
    return path


def test_describes_itself(tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as session:
        assert session.inputs == (
            TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
            TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
        )
        assert [(spec.name, spec.dtype) for spec in session.outputs] == [("logits", "float32"), ("pred_boxes", "float32")]
        assert session.metadata is not None
        assert session.metadata.id2label == models.LABELS


def test_the_caller_owns_the_outputs(tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as session:
        first = session.run(INPUTS)
        kept = {name: value.copy() for name, value in first.items()}
        assert first["logits"].shape == (2, 9, 6)
        assert first["pred_boxes"].shape == (2, 9, 4)
        session.run({**INPUTS, "pixel_values": INPUTS["pixel_values"] * 2})
        for name, value in first.items():
            assert np.array_equal(value, kept[name])
            value[:] = 0
        assert np.array_equal(session.run(INPUTS)["logits"], kept["logits"])


def test_inputs_of_any_memory_layout(tiny_onnx: Path) -> None:
    pixels, mask = INPUTS["pixel_values"], INPUTS["pixel_mask"]
    frozen = pixels.copy()
    frozen.setflags(write=False)
    with OrtSession(tiny_onnx) as session:
        expected = session.run(INPUTS)["logits"]
        for same in (np.asfortranarray(pixels), frozen, pixels[:, ::-1].copy()[:, ::-1]):
            assert np.array_equal(session.run({"pixel_values": same, "pixel_mask": mask})["logits"], expected)


@pytest.mark.parametrize(
    "options",
    [{"threads": 1}, {"threads": 3}, {"denormals_as_zero": True}]
    + [{"graph_optimization": level} for level in ("disabled", "basic", "extended", "all")],
    ids=str,
)
def test_options_keep_the_numbers(options: dict, tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as plain, OrtSession(tiny_onnx, **options) as session:
        given, expected = session.run(INPUTS), plain.run(INPUTS)
        for name in expected:
            assert np.abs(given[name] - expected[name]).max() <= 1e-4


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_reach_onnxruntime(threads: int, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = onnxruntime.InferenceSession

    def record(path: str, options: onnxruntime.SessionOptions, **kwargs: object) -> onnxruntime.InferenceSession:
        seen.append(options.intra_op_num_threads)
        return original(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    OrtSession(tiny_onnx, threads=threads).close()
    assert seen == [threads]


def test_eight_threads_give_the_same_results(tiny_onnx: Path) -> None:
    batches = [make_inputs(Case(64, 48 + 8 * index, ((64, 48 + 8 * index),)), 3, True, seed=index) for index in range(8)]
    with OrtSession(tiny_onnx, threads=1) as session, ThreadPoolExecutor(8) as pool:
        expected = [session.run(inputs) for inputs in batches] * 3
        for given, wanted in zip(pool.map(session.run, batches * 3), expected, strict=True):
            assert np.array_equal(given["logits"], wanted["logits"])
            assert np.array_equal(given["pred_boxes"], wanted["pred_boxes"])


def test_a_closed_session(tiny_onnx: Path) -> None:
    session = OrtSession(tiny_onnx)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.run(INPUTS)


def test_checks_its_inputs(tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as session, pytest.raises(InputError, match="expected pixel_values, pixel_mask"):
        session.run({"pixel_values": INPUTS["pixel_values"]})


def test_a_failing_run_is_a_backend_error(tmp_path: Path) -> None:
    x, shape, y = (
        helper.make_tensor_value_info(name, kind, dims)
        for name, kind, dims in (
            ("x", TensorProto.FLOAT, ["n"]),
            ("s", TensorProto.INT64, [1]),
            ("y", TensorProto.FLOAT, ["m"]),
        )
    )
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "s"], ["y"])], "g", [x, shape], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with OrtSession(tmp_path / "a.onnx") as session, pytest.raises(BackendError, match="ONNX Runtime failed: ") as caught:
        session.run({"x": np.zeros(3, np.float32), "s": np.array([2], np.int64)})
    assert "\n" not in str(caught.value)


# ---- devices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["tpu", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CUDA", "", "gpu"])
def test_refuses_devices(device: str, tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match=rf"device is '{device}'; expected cpu, cuda\[:N\], tensorrt"):
        OrtSession(tiny_onnx, device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_its_provider(device: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"this onnxruntime has no CUDA provider; run: .*detr-export\[gpu\]"):
        OrtSession(tiny_onnx, device)


def test_cuda_that_does_not_start_is_never_the_cpu(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen:
        """What ONNX Runtime gives when the CUDA provider fails to load: a session on the CPU."""

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: Fallen())
    with pytest.raises(BackendError, match="did not start CUDAExecutionProvider for device 'cuda:1'"):
        OrtSession(tiny_onnx, "cuda:1")


def test_two_distributions_are_refused(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "version", lambda name: "1.0")
    with pytest.raises(BackendError, match="onnxruntime and onnxruntime-gpu are both installed and overwrite each other"):
        OrtSession(tiny_onnx)


@pytest.mark.parametrize("only", ["onnxruntime", "onnxruntime-gpu"])
def test_one_distribution_is_fine(only: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != only:
            raise distributions.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(distributions, "version", version)
    OrtSession(tiny_onnx).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"threads": -2}, "threads is -2"),
        ({"graph_optimization": "most"}, "graph_optimization is 'most'; expected one of disabled, basic, extended, all"),
    ],
)
def test_refuses_options(options: dict, message: str, tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match=message):
        OrtSession(tiny_onnx, **options)


# ---- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 50, b"version https://git-lfs.github.com/spec/v1\n"])
def test_refuses_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a.onnx cannot be loaded by ONNX Runtime: ") as caught:
        OrtSession(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def test_refuses_truncated_models(tiny_onnx: Path, tmp_path: Path) -> None:
    whole = tiny_onnx.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.onnx").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"a.onnx cannot be loaded by ONNX Runtime: "):
            OrtSession(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["nothing.onnx", "."])
def test_refuses_what_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist or is not a file"):
        OrtSession(tmp_path / name)


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.float32(5).tobytes())
    with OrtSession(adder(tmp_path / "a.onnx", "w.bin")) as session:
        assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].tolist() == [[5.0] * 3] * 2


@pytest.mark.parametrize("relative", [True, False])
def test_external_data_elsewhere_is_refused(relative: bool, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(np.float32(5).tobytes())
    (tmp_path / "model").mkdir()
    location = "../secret.bin" if relative else str(tmp_path / "secret.bin")
    with pytest.raises(ArtifactError, match="cannot be loaded by ONNX Runtime"):
        OrtSession(adder(tmp_path / "model" / "a.onnx", location))


def test_dimensions_without_names(tmp_path: Path) -> None:
    with OrtSession(adder(tmp_path / "a.onnx")) as session:
        assert session.inputs == (TensorSpec("x", "float32", ("?", "?")),)
        assert session.metadata is None
        assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 3)


def test_damaged_metadata_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a.onnx: the file's metadata is damaged"):
        OrtSession(adder(tmp_path / "a.onnx", **{METADATA_KEY: "{"}))


def test_reading_is_not_writing(tiny_onnx: Path) -> None:
    before = tiny_onnx.read_bytes()
    with OrtSession(tiny_onnx) as session:
        session.run(INPUTS)
    assert tiny_onnx.read_bytes() == before
    onnx.load(str(tiny_onnx))
