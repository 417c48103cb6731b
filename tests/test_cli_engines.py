"""`detr-export trt` and engines in `predict`, on the double of TensorRT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import fails, run

DOUBLE = """
import sys, tempfile
from tests.tensorrt_double import Knobs, fake_tensorrt
knobs = Knobs()
sys.modules["tensorrt"] = fake_tensorrt("11.4.0.106", knobs)
from detr_export.runtimes.backends.cuda import opening as cuda_opening
cuda_opening.open_device = lambda index=0: knobs.device
"""
PROFILE = "1x64x64:1x96x128:1x160x160"


def test_builds_and_predicts(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    done = run("trt", tiny_onnx, "-o", engine, "--profile", PROFILE, before=DOUBLE)
    assert done.returncode == 0, done.stderr
    first, kernels, attentions, weights, second, *outputs = done.stdout.splitlines()
    assert first.startswith(f"{engine}  ")
    assert first.endswith("MB, fp32, TensorRT 11.4.0.106, Test GPU")
    assert " kernels (" in kernels
    assert attentions.startswith("0 of 6 attentions are one kernel each; ")  # the double fuses nothing
    assert weights.startswith("weights ")
    assert second == "verified over 6 batches against the float64 model"
    assert [line.split()[0] for line in outputs] == ["logits", "pred_boxes"]
    assert "  verifying 6/6 1x160x160 (1 padded)" in done.stderr.splitlines()

    found = run("predict", engine, photo, "--device", "cuda", "--threshold", "0.2", "--json", before=DOUBLE)
    expected = run("predict", tiny_onnx, photo, "--threshold", "0.2", "--json")
    assert found.returncode == 0, found.stderr
    labels = [[item["label"] for item in json.loads(output.stdout)[0]["detections"]] for output in (found, expected)]
    assert labels[0] == labels[1]
    assert labels[0]

    assert "exists; add --overwrite" in fails("trt", tiny_onnx, "-o", engine, before=DOUBLE)
    (tmp_path / "a.engine.json").unlink()
    assert "--trust-engine" in fails("predict", engine, photo, "--device", "cuda", before=DOUBLE)
    trusted = fails("predict", engine, photo, "--device", "cuda", "--trust-engine", before=DOUBLE)
    assert "has no detr-export metadata" in trusted  # it opens, and nobody knows what its classes are


def test_json_and_options(tiny_onnx: Path, tmp_path: Path) -> None:
    options = ("--profile", PROFILE, "--profile", "2x96x96", "--workspace", "64", "--optimization-level", "1")
    options += ("--version-compatible", "--hardware-compatible", "--aux-streams", "1", "--no-verify", "--json")
    done = run("trt", tiny_onnx, "-o", tmp_path / "a.plan", *options, before=DOUBLE)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["built_here"] is True
    assert document["sidecar"]["profiles"] == [PROFILE, "2x96x96:2x96x96:2x96x96"]
    assert document["sidecar"]["version_compatible"] is True
    assert document["sidecar"]["fallback"] is None
    assert document["sidecar"]["metadata"]["parity"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fp16",), "is fp32; export its checkpoint with: detr-export onnx --precision fp16"),
        (("--profile", "8x8"), "profile is '8x8'; expected MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH"),
        (("--device", "cpu"), "device is 'cpu'; an engine needs a GPU, 'cuda' or 'cuda:N'"),
    ],
)
def test_refuses(arguments: tuple[str, ...], message: str, tiny_onnx: Path, tmp_path: Path) -> None:
    assert message in fails("trt", tiny_onnx, "-o", tmp_path / "a.engine", *arguments, before=DOUBLE)
    assert list(tmp_path.glob("a.engine*")) == []


def test_without_tensorrt(tiny_onnx: Path, tmp_path: Path) -> None:
    missing = "import sys; sys.modules['tensorrt'] = None"
    line = fails("trt", tiny_onnx, "-o", tmp_path / "a.engine", before=missing)
    assert line == "error: tensorrt is not installed; run: pip install 'detr-export[trt]'"


def test_fallback_is_of_fp16(tiny_onnx: Path, tmp_path: Path) -> None:
    done = run("trt", tiny_onnx, "-o", tmp_path / "a.engine", "--fallback")
    assert done.returncode == 2
    assert "--fallback goes with --fp16" in done.stderr


def test_an_engine_needs_a_gpu(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"")
    assert "runs on a GPU; add --device cuda" in fails("predict", tmp_path / "a.engine", photo, before=DOUBLE)
