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
RTX = """
import sys
from tests.tensorrt_double import Knobs, fake_tensorrt
knobs = Knobs()
knobs.device.compute_capability = (8, 9)
sys.modules["tensorrt_rtx"] = fake_tensorrt("1.7.1.116", knobs, rtx=True)
from detr_export.runtimes.backends.cuda import opening as cuda_opening
cuda_opening.open_device = lambda index=0: knobs.device
"""
NO_GPU = f"""
{RTX}
from detr_export.runtimes.errors import BackendError
def refuse(index=0):
    raise BackendError("no NVIDIA driver is loaded")
cuda_opening.open_device = refuse
"""


def test_builds_and_predicts(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    done = run("trt", tiny_onnx, "-o", engine, "--profile", PROFILE, before=DOUBLE)
    assert done.returncode == 0, done.stderr
    first, kernels, attentions, weights, second, *outputs = done.stdout.splitlines()
    assert first.startswith(f"{engine}  ")
    assert first.endswith("MB, fp32, TensorRT 11.4.0.106, Test GPU")
    assert " kernels (" in kernels
    assert attentions.startswith("0 of 5 attentions are one kernel each; ")  # the double fuses nothing
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


def test_compiles_without_a_gpu_and_verifies_on_one(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    """A file on its way: compiled here, refused or warned about, verified on its GPU, and then like any other."""
    engine = tmp_path / "a.engine"
    targets = ("--compute-capability", "8.9", "12.0")
    done = run("trt", tiny_onnx, "-o", engine, "--rtx", *targets, "--profile", PROFILE, before=NO_GPU)
    assert done.returncode == 0, done.stderr
    first, kernels, *_, last = done.stdout.splitlines()
    assert first.endswith("MB, fp32, TensorRT-RTX 1.7.1.116, compute capability 8.9, 12.0")
    assert " kernels (" in kernels
    assert last == f"compiled, never run: nobody knows its numbers; on its GPU run detr-export verify {engine}"

    predict = ("predict", engine, photo, "--device", "cuda", "--threshold", "0.2")
    assert "no NVIDIA driver is loaded" in run(*predict, before=NO_GPU).stderr
    assert "was built and never compared with its checkpoint; check it" in fails(*predict, "--strict", before=RTX)
    warned = run(*predict, before=RTX)
    assert warned.returncode == 0, warned.stderr
    assert warned.stderr.splitlines() == [
        f"{engine} was built and never compared with its checkpoint, so its results may be wrong; "
        f"check it on this machine: detr-export verify {engine}"
    ]

    verified = run("verify", engine, "--device", "cuda:0", before=RTX)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("verified over 6 batches against the float64 model")
    sidecar = json.loads((tmp_path / "a.engine.json").read_text())
    assert sidecar["verified"] is True
    assert sidecar["metadata"]["parity"]["cases"] == 6
    again = run(*predict, "--strict", before=RTX)
    assert (again.returncode, again.stderr, again.stdout) == (0, "", warned.stdout)


def test_json_of_a_compiled_engine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("--rtx", "--fp16", "--profile", PROFILE, "--aux-streams", "1", "--workspace", "64", "--json")
    done = run("trt", tiny_checkpoint, "-o", tmp_path / "a.engine", *options, before=NO_GPU)
    assert done.returncode == 0, done.stderr
    sidecar = json.loads(done.stdout)["sidecar"]
    assert (sidecar["library"], sidecar["library_version"], sidecar["gpu"]) == ("tensorrt_rtx", "1.7.1.116", None)
    assert sidecar["targets"] == [[8, 0], [8, 6], [8, 9], [12, 0], [12, 1]]
    assert (sidecar["verified"], sidecar["metadata"]["parity"]) == (False, None)
    assert set(sidecar["kernels"]) >= {"kernels", "fused_attentions", "fp32", "casts", "copies", "weight_bytes", "by_kind"}
    assert sidecar["attestation"]["products"]["fp16"] > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compute-capability", "9.0"), "does not know compute capability 9.0; expected some of 7.5, 8.0, 8.6, 8.9, 12.0"),
        (("--compute-capability", "8"), "compute capability is '8'; expected two numbers such as 8.9"),
        (("--timing-cache", "t.cache"), "TensorRT-RTX does not have --timing-cache"),
        (("--hardware-compatible",), "does not have --hardware-compatible: name the GPUs with --compute-capability"),
        (("--version-compatible",), "does not have --version-compatible"),
        (("--optimization-level", "5"), "does not have --optimization-level"),
        (("--checkpoint", "demo"), "it is not compared with demo; leave --checkpoint out"),
    ],
)
def test_rtx_refuses(arguments: tuple[str, ...], message: str, tiny_onnx: Path, tmp_path: Path) -> None:
    command = ("trt", tiny_onnx, "-o", tmp_path / "a.engine", "--rtx", "--profile", PROFILE, *arguments)
    assert message in fails(*command, before=NO_GPU)
    assert list(tmp_path.glob("a.engine*")) == []


def test_rtx_without_the_package(tiny_onnx: Path, tmp_path: Path) -> None:
    missing = "import sys; sys.modules.update(tensorrt_rtx=None, tensorrt_rtx_bindings=None)"
    line = fails("trt", tiny_onnx, "-o", tmp_path / "a.engine", "--rtx", before=missing)
    assert line == "error: tensorrt_rtx is not installed; run: pip install 'detr-export[rtx]'"


def test_compute_capabilities_are_of_rtx(tiny_onnx: Path, tmp_path: Path) -> None:
    done = run("trt", tiny_onnx, "-o", tmp_path / "a.engine", "--compute-capability", "8.9")
    assert done.returncode == 2
    assert "--compute-capability goes with --rtx" in done.stderr


def test_strict_is_of_engines(tiny_onnx: Path, photo: Path) -> None:
    assert "which does not take strict" in fails("predict", tiny_onnx, photo, "--strict")


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
