"""A full disk, at any write: one line, exit code 1, what was there before, and nothing else.

Files here cannot grow beyond some bytes (RLIMIT_FSIZE), which fails as a full disk does, in C libraries too. One test fills
a real file system, where it may mount one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from matplotlib.figure import Figure

from detr_export.benchmarks.plot_style import write_png
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines.build import _write
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.parts import save_model
from detr_export.loading import load_model
from detr_export.model_card import write_card
from detr_export.runtimes import temporary
from detr_export.runtimes.errors import OutputError
from detr_export.runtimes.files import replacing_together, write_atomically
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.temporary import temporary_folder
from detr_export.training.plotting import plot_run
from detr_export.training.training_log import TrainingLog
from detr_export.verification.golden import GoldenCase
from detr_export.verification.golden.writing import write_golden
from tests.hostile.commands import run

FULL = "File too large"


@contextlib.contextmanager
def full_disk(size: int = 100) -> Iterator[None]:
    """Files cannot grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; nothing may be left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert [path.name for path in folder.iterdir() if path.name != ".ses"] == []  # that is ONNX Runtime's


def files(folder: Path) -> dict[str, bytes]:
    """The files in a folder and below, with their contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- writers ------------------------------------------------------------------------------------------------------------


def _graph(file: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.zeros(5000, np.float32), "w")
    y = onnx.helper.make_tensor_value_info("w", 1, [5000])
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [y], [weights]))

    class About:
        tools: ClassVar[dict[str, str]] = {}

        def to_json(self) -> str:
            return "{}"

    with replacing_together(file) as place:
        save_model(proto, About(), place)  # type: ignore[arg-type]


def _golden(file: Path) -> None:
    case = GoldenCase("a", {"x": np.zeros(500, np.float32)}, {"y": np.zeros(1, np.float32)})
    write_golden(file.parent / "golden", "a.onnx", {"name": "a", "sha256": "b"}, "tensors", [case], {"y": 1.0})


def _log(file: Path) -> None:
    log = TrainingLog(file.parent)
    for step in range(50):
        log.count({"loss": 1.0})
        log.end_row({"stage": "detector", "epoch": "1", "step": str(step), "learning_rate": "1"})
    log.write()


def _state(file: Path) -> None:
    from detr_export.training.state import Identity, State, write_state

    write_state(file, State(Identity({}, "", {}, False, 1, 1), 0, 0, {"w": torch.zeros(5000)}))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda file: write_atomically(file, b"0" * 5000),
    "plot": lambda file: write_png(Figure(), file),
    "plot of a run": lambda file: plot_run(file, [], []),
    "processor": lambda file: DetrImageProcessor().save_pretrained(file.parent),
    "graph": _graph,
    "golden": _golden,
    "log": _log,
    "state": _state,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writers(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with full_disk(), pytest.raises(OutputError, match=rf"cannot write {folder}.*: {FULL}"):
        WRITERS[writer](folder / "a.png")
    assert files(folder) == {}
    assert not list(folder.rglob(".*"))
    # With space it works, and then what is there stays.
    WRITERS[writer](folder / "a.png")
    before = files(folder)
    assert before
    if writer != "golden":
        with full_disk(), pytest.raises(OutputError, match=FULL):
            WRITERS[writer](folder / "a.png")
    assert files(folder) == before


def test_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(load_checkpoint(tiny_checkpoint))
    with full_disk(5000), pytest.raises(OutputError, match=rf"cannot write .*model.safetensors: {FULL}"):
        model.save_pretrained(tmp_path / "out")
    assert "model.safetensors" not in files(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_no_room_for_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(temporary.os, "mkdir", fail)
    with pytest.raises(OutputError, match="temporary folder: No space left on device; set TMPDIR to a folder with space"):
        temporary_folder()
    with pytest.raises(OutputError, match="cannot write to"), replacing_together(Path("a")):
        pass
    assert temporary._alive == {}


def test_a_file_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(temporary.os, "open", fail)
    with pytest.raises(OutputError, match=rf"cannot write to {tmp_path}: Disk quota exceeded"):
        write_atomically(tmp_path / "a", b"1")
    assert temporary._alive == {}


# ---- commands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "csv", "coco", "parquet", "yolo", "labelme"])
@pytest.mark.parametrize("what", ["pictures", "results"])
def test_predict(
    form: str,
    what: str,
    tiny_onnx: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No room for a picture; or for a picture, and not for the file of results."""
    out = tmp_path / "out"
    if what == "results":
        monkeypatch.setattr("detr_export.runtimes.files.Path.write_bytes", _no_space)
        monkeypatch.setattr("detr_export.runtimes.results.parquet.write_parquet", _no_space)
    with full_disk() if what == "pictures" else contextlib.nullcontext():
        done = run(capsys, "predict", tiny_onnx, photo, "-o", out, "--format", form, "--threshold", "0")
    assert [path.name for path in out.iterdir()] == ([] if what == "pictures" else ["china.png"])
    assert done.code == 1
    assert len(done.errors) == 1
    assert done.errors[0].startswith(f"error: cannot write {out}")


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("layout", ["coco", "roboflow"])
def test_demo_data(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk():
        done = run(capsys, "demo-data", tmp_path / "out", "--images", "2", "--layout", layout, "--kind", "coins")
    assert (done.code, len(done.errors)) == (1, 1)
    assert f"cannot write {tmp_path / 'out'}" in done.err
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize("size", [100, 50_000])
def test_onnx(size: int, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ExportOptions(simplify=False, verify=False)
    kept = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "kept.onnx", options).path  # it is traced now
    before = files(tmp_path)
    with full_disk(size):
        done = run(capsys, "onnx", tiny_checkpoint, "-o", kept, "--overwrite", "--no-simplify", "--no-verify")
    assert done.code == 1
    assert len(done.errors) == 1
    assert re.fullmatch(rf"error: cannot write .*\.onnx: {FULL}", done.errors[0])
    assert files(tmp_path) == before


def test_verify_with_a_full_folder_for_temporary_files(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_export.runtimes.temporary.os.mkdir", _no_space)
    done = run(capsys, "trt", tiny_onnx, "-o", tmp_path / "a.engine", "--rtx", "--compute-capability", "8.6", "--json")
    assert done.code == 1
    assert "error: cannot make a temporary folder: No space left on device" in done.err or "not installed" in done.err


def test_a_real_full_file_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root mounts a file system")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    try:
        done = run(capsys, "demo-data", place / "data", "--images", "30")
        assert done.code == 1
        assert len(done.errors) == 1
        assert done.errors[0].endswith("No space left on device")
        assert not [path for path in place.rglob("*") if path.name.startswith(".")]
        assert not list(place.rglob("*.json"))
    finally:
        subprocess.run(["umount", place], check=True)


def test_engines_are_written_last(tmp_path: Path) -> None:
    """The sidecar comes first, so that a full disk leaves no engine that says nothing of itself."""

    class Sidecar:
        def to_json(self) -> str:
            return "{}"

    class Item:
        sidecar = Sidecar()

        class plan:
            content = b"0" * 5000

    with full_disk(), pytest.raises(OutputError, match=rf"cannot write .*a.engine: {FULL}"):
        _write([Item()], tmp_path / "out" / "a.engine")  # type: ignore[list-item]
    assert sorted(files(tmp_path / "out")) == ["a.engine.json"]


def test_a_model_card(tiny_onnx: Path, tmp_path: Path) -> None:
    from detr_export.graphs.inspection import inspect_onnx

    metadata = inspect_onnx(tiny_onnx).metadata
    assert metadata is not None
    (tmp_path / "out").mkdir()
    file = Path(shutil.copy(tiny_onnx, tmp_path / "out"))
    with full_disk(), pytest.raises(OutputError, match=rf"cannot write .*\.md: {FULL}"):
        write_card(file, metadata, None, None)
    assert list(files(tmp_path / "out")) == [file.name]


def test_events_for_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_export.training.tensorboard import Board

    monkeypatch.setattr(threading, "excepthook", lambda failed: None)  # it raises in its thread, too
    before = set(threading.enumerate())

    def write() -> None:
        with Board(tmp_path / "out") as board:
            for step in range(2000):
                board.row("training", {"stage": "detector", "step": str(step), "loss": "1"})

    with full_disk(), pytest.raises(OutputError, match=rf"cannot write {tmp_path / 'out'}.*: {FULL}"):
        write()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
