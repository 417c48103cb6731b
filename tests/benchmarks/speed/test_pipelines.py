"""What a backend opens, in which precision it says that it computes, and what it says where it cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detr_export.benchmarks.speed import pipelines
from detr_export.benchmarks.speed.agreement import largest_differences, tolerance, within
from detr_export.benchmarks.speed.pipelines import CudaPipeline, OwnPipeline, open_pipeline
from detr_export.benchmarks.speed.torch_variants import AutocastSession, DeployedSession
from detr_export.runtimes.backends.ort import session as ort_session
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.verification.cases import Case, make_inputs

INPUTS = make_inputs(Case(96, 128, ((96, 128), (64, 100))), 3, True, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("torch-cuda", "this PyTorch sees no CUDA device"),
        ("torch-cuda-fp16", "this PyTorch sees no CUDA device"),
        ("torch-compile-cuda-fp16", "this PyTorch sees no CUDA device"),
        ("ort-cuda", "this onnxruntime has no CUDA provider"),
        ("ort-tensorrt", "this onnxruntime has no TensorRT provider"),
        ("ort-tensorrt-rtx", r"the TensorRT-RTX plugin (is not installed|does not load)"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(backend: str, message: str, tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    source = tiny_checkpoint if backend.startswith("torch") else tiny_onnx
    with pytest.raises(BackendError, match=message):
        open_pipeline(backend, str(source), threads=1, max_batch=2)


class OnTheCpu(ort_session.OrtSession):
    """Notes what it was asked for, and opens the file on the CPU."""

    asked: tuple[str, int | None] = ("", None)

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None, max_batch: int | None = None) -> None:
        OnTheCpu.asked = (device, max_batch)
        super().__init__(path, "cpu", 1)


@pytest.mark.parametrize(
    ("backend", "asked", "kind"),
    [
        ("ort", ("cpu", None), OwnPipeline),
        ("ort-cuda", ("cuda", None), CudaPipeline),
        ("ort-tensorrt", ("tensorrt", 4), CudaPipeline),
        ("ort-tensorrt-rtx", ("tensorrt-rtx", 4), OwnPipeline),
    ],
)
def test_providers_and_their_precision(
    backend: str, asked: tuple[str, int | None], kind: type, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session, "OrtSession", OnTheCpu)
    for tf32 in (True, False):
        monkeypatch.setattr(pipelines, "has_tf32", lambda tf32=tf32: tf32)
        pipeline = open_pipeline(backend, str(tiny_onnx), threads=1, max_batch=4)
        assert (OnTheCpu.asked, type(pipeline)) == (asked, kind)
        assert pipeline.precision == ("tf32" if tf32 and backend != "ort" else "fp32")


def test_half_precision_in_pytorch(tiny_checkpoint: Path) -> None:
    with TorchSession.open(tiny_checkpoint) as full, AutocastSession(str(tiny_checkpoint), "cpu") as half:
        expected, found = full.run(INPUTS), half.run(INPUTS)
    assert all(array.dtype == np.float32 for array in found.values())
    differences = largest_differences(found, expected)
    assert within(differences, tolerance("fp16"))
    assert all(value is not None and value > 0 for value in differences.values())  # or nothing was rounded


@pytest.mark.parametrize("kind", [DeployedSession, AutocastSession])
def test_uint8_images_in_pytorch(kind: Any, tiny_checkpoint: Path) -> None:
    pictures = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8) for seed in range(2)]
    processor = DetrImageProcessor(size={"height": 96, "width": 128})
    plain, lean = (OwnPipeline(kind(str(tiny_checkpoint), "cpu", uint8=uint8), "1") for uint8 in (False, True))
    inputs = lean.inputs(processor, pictures)
    assert {name: (array.dtype, array.shape) for name, array in inputs.items()} == {
        "pixel_values": (np.uint8, (2, 96, 128, 3)),
        "valid_sizes": (np.int64, (2, 2)),
    }
    found, expected = lean.session.run(inputs), plain.session.run(plain.inputs(processor, pictures))
    assert within(largest_differences(found, expected), tolerance("fp16" if kind is AutocastSession else "fp32"))


def test_pipelines_say_what_they_compute_in(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_export.benchmarks.speed import torch_variants

    def on_the_cpu(source: str, uint8: bool, **_: Any) -> TorchSession:
        takes_uint8.append(uint8)
        return opened(source)

    opened = TorchSession.open
    takes_uint8: list[bool] = []
    monkeypatch.setattr(torch_variants, "DeployedSession", on_the_cpu)
    monkeypatch.setattr(torch_variants, "AutocastSession", on_the_cpu)
    for uses_tf32, precision in ((True, "tf32"), (False, "fp32")):
        monkeypatch.setattr(torch_variants, "convolutions_use_tf32", lambda uses_tf32=uses_tf32: uses_tf32)
        assert open_pipeline("torch-cuda", str(tiny_checkpoint), 1).precision == precision
    assert open_pipeline("torch", str(tiny_checkpoint), 1).precision == "fp32"
    assert open_pipeline("torch-cuda-fp16", str(tiny_checkpoint), 1).precision == "fp16"
    assert open_pipeline("torch-compile-cuda-fp16", str(tiny_checkpoint), 1).precision == "fp16"
    assert takes_uint8 == [False] * 4
    for backend in ("torch-cuda", "torch-cuda-fp16", "torch-compile-cuda-fp16", "torch"):
        open_pipeline(backend, str(tiny_checkpoint), 1, uint8=True)
    assert takes_uint8[4:] == [True] * 3  # the reference on the CPU is fed by the processor
