"""`open_session`: the backend that a file is for, and the options that it has there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detr_export.runtimes import open_session
from detr_export.runtimes.backends.openvino.session import OpenVinoSession
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import ArtifactError, BackendError, CheckpointError
from detr_export.runtimes.opening import CHECKPOINT, ENGINE, ENGINE_SUFFIXES, ONNX, kind_of, spins


def test_open_session_chooses_the_backend(
    tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with open_session(tiny_onnx) as session:
        assert isinstance(session, OrtSession)
    with open_session(tiny_onnx, "openvino", threads=1) as session:
        assert isinstance(session, OpenVinoSession)
    with open_session(str(tiny_checkpoint)) as session:
        assert isinstance(session, TorchSession)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.txt", ArtifactError, "a.txt is neither an .onnx file nor a checkpoint"),
        ("model.safetensors", ArtifactError, "model.safetensors is neither an .onnx file nor a checkpoint"),
        ("a.pth", CheckpointError, "a.pth is truncated or not a PyTorch file"),
        ("folder", CheckpointError, "config.json does not exist"),
        ("nothing.onnx", ArtifactError, "nothing.onnx does not exist"),
        ("nothing.pth", CheckpointError, "nothing.pth does not exist"),
    ],
)
def test_open_session_refuses(name: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    if not name.startswith(("nothing", "folder")):
        (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(error, match=message):
        open_session(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.onnx", ONNX),
        *((f"folder.onnx/a{suffix}", ENGINE) for suffix in ENGINE_SUFFIXES),
        ("a.pth", CHECKPOINT),
        ("folder", CHECKPOINT),
        ("facebook/detr-resnet-50", CHECKPOINT),
        ("~/a.onnx", ONNX),
        ("~nobody-of-this-name/x", CHECKPOINT),
        ("a" * 5000, CHECKPOINT),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind_of(Path(name)) == kind


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("onnx", {"attentions": True}, r"an ONNX file, which does not take attentions: .*onnx --with-attentions"),
        ("onnx", {"strict": True}, r"an ONNX file, which does not take strict: .*leave strict \(--strict\) out"),
        ("onnx", {"trust_engine": True}, r"an ONNX file, which does not take trust_engine: .*leave trust_engine"),
        ("engine", {"attentions": True}, r"a TensorRT engine, which does not take attentions: .*onnx --with-attentions"),
        ("engine", {"spinning": False}, r"a TensorRT engine, which does not take spinning: .*leave spinning out"),
        ("engine", {"spinning": True}, r"a TensorRT engine, which does not take spinning: .*leave spinning out"),
        ("engine", {"threads": 1}, r"a TensorRT engine, which does not take threads: .*leave threads out"),
        (
            "engine",
            {"revision": "v2"},
            r"a TensorRT engine, which does not take revision: .*leave revision \(--revision\) out",
        ),
        ("checkpoint", {"spinning": False}, r"a checkpoint, which does not take spinning: .*leave spinning out"),
        ("checkpoint", {"trust_engine": True}, r"a checkpoint, which does not take trust_engine: .*leave trust_engine"),
    ],
)
def test_refuses_options_of_other_backends(
    kind: str, options: dict[str, Any], message: str, tiny_onnx: Path, tiny_checkpoint: Path
) -> None:
    path = {"onnx": tiny_onnx, "checkpoint": tiny_checkpoint, "engine": Path("a.engine")}[kind]
    with pytest.raises(BackendError, match=f"{path.name} is {message}"):
        open_session(path, "cuda" if kind == "engine" else "cpu", **options)


@pytest.mark.parametrize("spinning", [True, False])
def test_openvino_does_not_spin(spinning: bool, tiny_onnx: Path) -> None:
    message = "an ONNX file on the device openvino, which does not take spinning: .*; leave spinning out"
    with pytest.raises(BackendError, match=message):
        open_session(tiny_onnx, "openvino", spinning=spinning)


def test_only_onnx_runtime_spins(tiny_onnx: Path, tiny_checkpoint: Path) -> None:
    assert spins(tiny_onnx, "cpu")
    assert spins(tiny_onnx, "cuda:1")
    assert not spins(tiny_onnx, "openvino")
    assert not spins(tiny_checkpoint, "cpu")
    assert not spins("a.engine", "cuda")


def test_a_checkpoint_does_not_run_in_openvino(tiny_checkpoint: Path) -> None:
    with pytest.raises(BackendError, match=r"device is 'openvino', but PyTorch takes cpu or cuda\[:N\]"):
        open_session(tiny_checkpoint, "openvino")


def test_takes_the_options_of_its_own_backend(tiny_onnx: Path, tiny_checkpoint: Path) -> None:
    for spinning in (None, True, False):
        open_session(tiny_onnx, threads=1, spinning=spinning).close()
    with open_session(tiny_checkpoint, attentions=True) as session:
        assert "cross_attention" in [spec.name for spec in session.outputs]
