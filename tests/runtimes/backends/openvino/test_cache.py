"""Compiled models in a folder: who gets which entry, and what becomes of a damaged one."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes import Metadata, open_session
from detr_export.runtimes.backends.openvino import cache as cache_module
from detr_export.runtimes.backends.openvino.session import OpenVinoSession
from detr_export.runtimes.errors import BackendError, OutputError
from detr_export.runtimes.metadata import METADATA_KEY
from tests import models

X = np.random.default_rng(0).normal(size=(2, 3, 17, 19)).astype(np.float32)


def write_model(path: Path, seed: int = 0) -> Path:
    """Two outputs, free sizes, metadata, and weights that depend on the seed."""
    kernel = numpy_helper.from_array(np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32), "kernel")
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["features"], ["pred"]),
        helper.make_node("GlobalAveragePool", ["pred"], ["mean"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    outputs = [
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 4, 1, 1]),
        helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 4, "height", "width"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], outputs, [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: Metadata("detection", models.LABELS, {}, pixel_mask=False).to_json()})
    onnx.save_model(model, str(path))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "a.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "below"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that OpenVINO compiles."""
    done: list[str] = []
    original = openvino.Core.compile_model

    def compile_model(core: Any, path: str, *arguments: Any) -> Any:
        done.append(Path(path).name)
        return original(core, path, *arguments)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    return done


def run(file: Path, folder: Path | None, threads: int = 1) -> dict[str, np.ndarray]:
    with OpenVinoSession(file, threads=threads, cache=folder) as session:
        return session.run({"x": X})


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_second_time_nothing_is_compiled_and_all_is_the_same(model: Path, folder: Path, compiled: list[str]) -> None:
    with OpenVinoSession(model, threads=1) as plain:
        expected = plain.run({"x": X})
        for _ in range(3):
            with open_session(model, "openvino", threads=1, cache=folder) as session:
                assert (session.inputs, session.outputs, session.metadata) == (plain.inputs, plain.outputs, plain.metadata)
                assert_equal(session.run({"x": X}), expected)
    assert plain.metadata is not None
    assert len(compiled) == 2  # without the cache, and the first time with it
    assert len(list(folder.iterdir())) == 1


def test_a_changed_file_never_meets_the_old_entry(model: Path, folder: Path, compiled: list[str]) -> None:
    first = run(model, folder)
    stamp = model.stat()
    write_model(model, seed=1)
    os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert model.stat().st_size == stamp.st_size  # neither its size nor its time tells
    assert not np.array_equal(run(model, folder)["pred"], first["pred"])
    assert_equal(run(write_model(model), folder), first)
    assert len(compiled) == 2


def test_the_name_and_the_place_of_a_file_do_not_matter(model: Path, folder: Path, compiled: list[str]) -> None:
    run(model, folder)
    run(Path(shutil.copy(model, model.with_name("b.onnx"))), folder)
    assert compiled == ["a.onnx"]


def test_what_changes_the_compiled_model_has_an_entry_of_its_own(
    model: Path, folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, folder)
    with OpenVinoSession(model, cache=folder):  # as many threads as OpenVINO likes
        pass
    monkeypatch.setattr(cache_module, "cpu_flags", lambda: ["another"])
    run(model, folder)
    monkeypatch.setattr(openvino, "__version__", "another")
    run(model, folder)
    assert len(compiled) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "a byte", "empty", "text", "a folder", "for OpenVINO"])
def test_a_damaged_entry_is_made_anew(damage: str, model: Path, folder: Path, compiled: list[str]) -> None:
    expected = run(model, folder)
    (entry,) = folder.iterdir()
    good = entry.read_bytes()
    if damage == "a folder":
        entry.unlink()
        entry.mkdir()
        with pytest.raises(OutputError, match="cannot write"):
            run(model, folder)
        return
    blob = b"no model" + good[cache_module._HEADER.size : -100]  # with a right checksum, so that OpenVINO is who refuses it
    entry.write_bytes(
        {
            "cut": good[:-1],
            "a byte": good[:1000] + bytes([good[1000] ^ 1]) + good[1001:],
            "empty": b"",
            "text": b"hello" * 100,
            "for OpenVINO": cache_module._header_of(blob) + blob,
        }[damage]
    )
    assert_equal(run(model, folder), expected)
    assert len(compiled) == 2
    assert entry.stat().st_size == len(good)
    assert_equal(run(model, folder), expected)
    assert len(compiled) == 2


def test_two_threads_at_once(model: Path, folder: Path) -> None:
    expected, found = run(model, None), []
    barrier = threading.Barrier(2, timeout=20)

    def work() -> None:
        barrier.wait()
        found.append(run(model, folder))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for outputs in (*found, run(model, folder)):
        assert_equal(outputs, expected)
    assert [entry.suffix for entry in folder.iterdir()] == [cache_module.SUFFIX]  # one entry, no temporary file
    assert not next(folder.iterdir()).name.startswith(".")


def test_a_folder_that_cannot_be_written(model: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        run(model, model / "below")


def test_other_backends_refuse_a_cache(model: Path, tmp_path: Path) -> None:
    for path in (model, tmp_path / "a.engine", tmp_path):
        with pytest.raises(BackendError, match=r"does not take cache: only OpenVINO .*; leave cache \(--cache\) out"):
            open_session(path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
