"""What every backend for ONNX files does alike: describing itself, owning arrays, threads, closing, and damaged files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes.backends.openvino.session import OpenVinoSession
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError
from detr_export.runtimes.metadata import METADATA_KEY
from detr_export.runtimes.session import TensorSpec
from detr_export.verification.cases import Case, make_inputs
from tests import models

INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)


@dataclass(frozen=True)
class Backend:
    """One of the backends."""

    title: str  # its name in messages
    open: type[OrtSession] | type[OpenVinoSession]


@pytest.fixture(
    params=[Backend("ONNX Runtime", OrtSession), Backend("OpenVINO", OpenVinoSession)], ids=lambda item: item.title
)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Backend:
    """Each backend, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    return request.param


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


def test_describes_itself(backend: Backend, tiny_onnx: Path) -> None:
    with backend.open(tiny_onnx) as session:
        assert session.inputs == (
            TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
            TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
        )
        assert [(spec.name, spec.dtype) for spec in session.outputs] == [("logits", "float32"), ("pred_boxes", "float32")]
        assert session.metadata is not None
        assert session.metadata.id2label == models.LABELS


def test_the_caller_owns_the_outputs(backend: Backend, tiny_onnx: Path) -> None:
    with backend.open(tiny_onnx) as session:
        first = session.run(INPUTS)
        kept = {name: value.copy() for name, value in first.items()}
        assert first["logits"].shape == (2, 9, 6)
        assert first["pred_boxes"].shape == (2, 9, 4)
        session.run({**INPUTS, "pixel_values": INPUTS["pixel_values"] * 2})
        for name, value in first.items():
            assert np.array_equal(value, kept[name])
            value[:] = 0
        assert np.array_equal(session.run(INPUTS)["logits"], kept["logits"])


def test_inputs_of_any_memory_layout(backend: Backend, tiny_onnx: Path) -> None:
    pixels, mask = INPUTS["pixel_values"], INPUTS["pixel_mask"]
    frozen = pixels.copy()
    frozen.setflags(write=False)
    with backend.open(tiny_onnx) as session:
        expected = session.run(INPUTS)["logits"]
        for same in (np.asfortranarray(pixels), frozen, pixels[:, ::-1].copy()[:, ::-1]):
            assert np.array_equal(session.run({"pixel_values": same, "pixel_mask": mask})["logits"], expected)


def test_eight_threads_give_the_same_results(backend: Backend, tiny_onnx: Path) -> None:
    batches = [make_inputs(Case(64, 48 + 8 * index, ((64, 48 + 8 * index),)), 3, True, seed=index) for index in range(8)]
    with backend.open(tiny_onnx, threads=1) as session, ThreadPoolExecutor(8) as pool:
        expected = [session.run(inputs) for inputs in batches] * 3
        for given, wanted in zip(pool.map(session.run, batches * 3), expected, strict=True):
            assert np.array_equal(given["logits"], wanted["logits"])
            assert np.array_equal(given["pred_boxes"], wanted["pred_boxes"])


def test_a_closed_session(backend: Backend, tiny_onnx: Path) -> None:
    session = backend.open(tiny_onnx)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.run(INPUTS)


def test_checks_its_inputs(backend: Backend, tiny_onnx: Path) -> None:
    with backend.open(tiny_onnx) as session, pytest.raises(InputError, match="expected pixel_values, pixel_mask"):
        session.run({"pixel_values": INPUTS["pixel_values"]})


def test_a_failing_run_is_a_backend_error(backend: Backend, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name, size in ("xn", "zm", "yk")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "z"], ["y"])], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with (
        backend.open(tmp_path / "a.onnx") as session,
        pytest.raises(BackendError, match=f"{backend.title} failed: ") as caught,
    ):
        session.run({"x": np.zeros(3, np.float32), "z": np.zeros(2, np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 50, b"version https://git-lfs.github.com/spec/v1\n"])
def test_refuses_what_is_no_model(backend: Backend, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"a.onnx cannot be loaded by {backend.title}: ") as caught:
        backend.open(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def test_refuses_truncated_models(backend: Backend, tiny_onnx: Path, tmp_path: Path) -> None:
    whole = tiny_onnx.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.onnx").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=rf"a.onnx cannot be loaded by {backend.title}: "):
            backend.open(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["nothing.onnx", "."])
def test_refuses_what_is_no_file(backend: Backend, name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a (regular )?file"):
        backend.open(tmp_path / name)


def test_external_data_beside_the_file(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.float32(5).tobytes())
    with backend.open(adder(tmp_path / "a.onnx", "w.bin")) as session:
        assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].tolist() == [[5.0] * 3] * 2


@pytest.mark.parametrize("relative", [True, False])
def test_external_data_elsewhere_is_refused(backend: Backend, relative: bool, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(np.float32(5).tobytes())
    (tmp_path / "model").mkdir()
    location = "../secret.bin" if relative else str(tmp_path / "secret.bin")
    with pytest.raises(ArtifactError, match="expected a file in the folder of the ONNX file"):
        backend.open(adder(tmp_path / "model" / "a.onnx", location))


def test_dimensions_without_names(backend: Backend, tmp_path: Path) -> None:
    with backend.open(adder(tmp_path / "a.onnx")) as session:
        assert session.inputs == (TensorSpec("x", "float32", ("?", "?")),)
        assert session.metadata is None
        assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 3)


def test_damaged_metadata_names_the_file(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a.onnx: the file's metadata is not JSON"):
        backend.open(adder(tmp_path / "a.onnx", **{METADATA_KEY: "{"}))


def test_reading_is_not_writing(backend: Backend, tiny_onnx: Path) -> None:
    before = tiny_onnx.read_bytes()
    with backend.open(tiny_onnx) as session:
        session.run(INPUTS)
    assert tiny_onnx.read_bytes() == before
    onnx.load(str(tiny_onnx))


@pytest.mark.parametrize("threads", [0, -2])
def test_refuses_a_number_of_threads(backend: Backend, threads: int, tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}; expected 1 to"):
        backend.open(tiny_onnx, threads=threads)


def test_a_device_of_another_backend(backend: Backend, tiny_onnx: Path) -> None:
    device = "cpu" if backend.open is OpenVinoSession else "openvino"
    with pytest.raises(BackendError, match=f"device is '{device}', but {backend.title} takes "):
        backend.open(tiny_onnx, device)
