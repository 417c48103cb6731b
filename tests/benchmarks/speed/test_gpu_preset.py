"""`detr-bench gpu` without a GPU: its refusal, what it would measure, and what becomes of files that cannot be made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_export.benchmarks.cost.model import model_cost
from detr_export.benchmarks.speed import gpu_preset
from detr_export.benchmarks.speed.gpu_preset import (
    CHECKPOINT,
    ENGINES,
    GRAPHS,
    find_gpu,
    goals,
    list_targets,
    make_targets,
    run_gpu,
)
from detr_export.benchmarks.speed.report import Environment, Measurement, Method, Report
from detr_export.benchmarks.speed.statistics import Noise, Ratio, timing
from detr_export.benchmarks.speed.targets import BACKENDS, Target
from detr_export.engines.source import make_graph
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.errors import BackendError, InputError, OutputError, VerificationError
from tests.benchmarks.conftest import Watcher
from tests.tensorrt_double.fixtures import NEWEST, Install


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that take no time."""
    monkeypatch.setattr(gpu_preset, "SIZE", (96, 128))
    monkeypatch.setattr(gpu_preset, "BATCHES", (1, 2))


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(index: int = 0) -> None:
        raise BackendError("no NVIDIA driver is loaded; install one")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda_opening, "open_device", none)
    with pytest.raises(BackendError, match=r"^there is no GPU to measure: no NVIDIA driver is loaded; install one$"):
        run_gpu(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_pytorch_does_not_see_is_one(install_tensorrt: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = install_tensorrt(NEWEST)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_gpu() == knobs.device.name


def test_everything_that_runs_on_a_gpu_is_measured() -> None:
    made = {name: Path(name) for name in (CHECKPOINT, *GRAPHS, *ENGINES)}
    targets, failed = list_targets("r50", made, {})
    assert failed == []
    assert targets[0] == Target("torch", CHECKPOINT, "torch:r50", timed=False)
    assert [item.name for item in targets[1:]] == [
        "torch-cuda:r50",
        "torch-cuda-fp16:r50",
        "torch-compile-cuda-fp16:r50",
        "ort-cuda:r50 fp32",
        "ort-cuda:r50 fp16",
        "ort-tensorrt:r50 fp16",
        "ort-tensorrt-rtx:r50 fp32",
        "ort-tensorrt-rtx:r50 fp16",
        "tensorrt:r50 fp32",
        "tensorrt:r50 fp16",
    ]
    assert all(item.timed and BACKENDS[item.backend].device == "cuda" for item in targets[1:])
    assert all(item.lean_input for item in targets[1:])
    on_gpu = {name for name, backend in BACKENDS.items() if backend.device == "cuda"}
    assert {item.backend for item in targets[1:]} == on_gpu


@pytest.mark.usefixtures("small")
def test_what_cannot_be_made_has_its_reason(
    install_tensorrt: Install, tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt(NEWEST)
    monkeypatch.setattr(
        "detr_export.seeding.write_seeded_checkpoint", lambda folder, panoptic: shutil.copytree(tiny_checkpoint, folder)
    )

    def export(checkpoint: Path, precision: str, folder: Path) -> Path:
        assert (checkpoint / "config.json").is_file()
        if precision == "fp16":
            raise VerificationError("fp16 disagrees")
        return Path(shutil.copy(tiny_onnx, folder / "fp32.onnx"))

    monkeypatch.setattr(gpu_preset, "_export", export)
    watcher = Watcher()
    targets, failed = make_targets("r50", False, tmp_path, watcher)
    assert [item.name for item in targets] == [
        *("torch:r50", "torch-cuda:r50", "torch-cuda-fp16:r50", "torch-compile-cuda-fp16:r50"),
        *("ort-cuda:r50 fp32", "ort-tensorrt-rtx:r50 fp32", "tensorrt:r50 fp32"),
    ]
    assert targets[-1].source == str(tmp_path / "fp32.engine")
    assert (tmp_path / "fp32.engine").is_file()
    assert {item.name: item.error for item in failed} == {
        "ort-cuda:r50 fp16": "fp16 disagrees",
        "ort-tensorrt:r50 fp16": "fp16 disagrees",
        "ort-tensorrt-rtx:r50 fp16": "fp16 disagrees",
        "tensorrt:r50 fp16": "fp16 disagrees",
    }
    assert watcher.stages[:2] == ["making r50", "making r50, fp32"]


@pytest.mark.usefixtures("small")
def test_files_and_engines_take_uint8_images_at_every_size(
    install_tensorrt: Install, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    install_tensorrt(NEWEST)
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    (tmp_path / "graphs").mkdir()
    graph = gpu_preset._export(tiny_checkpoint, "fp16", tmp_path / "graphs")
    floats = make_graph(str(tiny_checkpoint), "fp32", tmp_path)
    assert model_cost(graph, 96, 128, 2).gmac == model_cost(floats, 96, 128, 2).gmac  # the rates are made of it
    engine = gpu_preset._build(graph)
    with TensorRTSession(engine) as session:
        assert session.metadata is not None
        assert (session.metadata.input, session.metadata.precision) == ("uint8", "fp16")
        assert [spec.dtype for spec in session.inputs] == ["uint8", "int64"]
        shapes = [profile.inputs["pixel_values"] for profile in session.profiles]
    assert shapes == [((batch, *size, 3),) * 3 for batch, size in ((1, (96, 128)), (2, (96, 128)), (2, (128, 96)))]


def test_an_error_of_a_library_is_a_reason_too(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Path:
        raise RuntimeError("CUDA error\nmore")

    monkeypatch.setattr("detr_export.seeding.write_seeded_checkpoint", lambda folder, panoptic: tiny_checkpoint)
    monkeypatch.setattr(gpu_preset, "_export", fail)
    _, failed = make_targets("r50", False, tmp_path)
    assert {item.error for item in failed} == {"RuntimeError: CUDA error"}
    assert len(failed) == 7


@pytest.mark.usefixtures("small")
def test_each_model_has_a_report(
    tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_preset, "find_gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu_preset, "_RESULTS", tmp_path)
    monkeypatch.setattr("detr_export.benchmarks.cost.machine_peak.gemm_peak_gflop_per_s", lambda threads: 100.0)

    def make(model: str, panoptic: bool, folder: Path, progress: Any) -> Any:
        targets, failed = list_targets(model, {CHECKPOINT: tiny_checkpoint}, dict.fromkeys((*GRAPHS, *ENGINES), "not made"))
        return [targets[0], targets[1], Target("ort", str(tiny_onnx), f"ort:{model}")], failed

    monkeypatch.setattr(gpu_preset, "make_targets", make)
    reports = run_gpu(threads=1, rounds=2, runs=1, command=["detr-bench", "gpu"])
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("nvidia-h200-2")
    assert list(reports) == [str(folder / "r50"), str(folder / "r50-panoptic")]
    for report in reports.values():
        assert {(item.height, item.width, item.batch) for item in report.measurements} == {
            *((96, 128, 1), (96, 128, 2), (128, 96, 2))
        }
        # The second size is compared and not timed, and so is the checkpoint on the CPU at all of them; what needs a GPU
        # says that there is none.
        second = [item for item in report.measurements if item.height == 128]
        assert len(second) >= 2
        assert all(item.correct and item.session_ms is None and item.rounds == 0 for item in second)
        reference, measured, *_ = (item for item in report.measurements if item.height == 96)
        assert (reference.variant[:6], reference.correct, reference.session_ms) == ("torch:", True, None)
        assert measured.correct
        assert measured.rounds == 2
        assert measured.ratio_to_baseline is not None
        assert measured.images_per_second.keys() == {"1"}
        errors = {item.name: item.error for item in report.variants if item.error}
        assert len(errors) == 8
        if not torch.cuda.is_available():
            assert any("sees no CUDA device" in text for text in errors.values())
        assert "not made" in errors.values()
        assert "the checkpoint in PyTorch on the CPU" in report.notes[0]
        assert "for 2 images at 96x128 and 128x96" in report.notes[0]
        assert "the session's time begins with images in host memory" in report.notes[1]
        inputs = {item.name: item.input for item in report.variants if item.input}
        assert set(inputs.values()) == {"float32"}  # these files; and nothing that needs a GPU was opened
    assert "the fp16 engine was not timed" in reports[str(folder / "r50")].notes[2]
    assert {"report.json", "report.md", "latency.png"} < {file.name for file in (folder / "r50-panoptic").iterdir()}
    with pytest.raises(OutputError, match="exists"):
        run_gpu(threads=1, rounds=2, runs=1)
    with pytest.raises(InputError, match="leave --runs or --seconds out"):
        run_gpu(runs=1, seconds=1.0, overwrite=True)


def timed(variant: str, batch: int, median: float) -> Measurement:
    return Measurement(variant, 800, 1066, batch, True, {}, {}, session_ms=timing([median]))


def compared(variant: str, correct: bool | None = True, error: str | None = None, batch: int = 2) -> Measurement:
    """At the second size."""
    return Measurement(variant, 1066, 800, batch, correct, {}, {}, error=error)


REFERENCE = [*(Measurement("torch:r50", 800, 1066, batch, True, {}, {}) for batch in (1, 8)), compared("torch:r50")]


def report(*measurements: Measurement, reference: Sequence[Measurement] = REFERENCE) -> Report:
    environment = Environment("A CPU", 2, 8 << 30, None, "Linux", "3.11.0", "A GPU", "1", {}, 2)
    return Report("2026-01-01", None, environment, Method(3, 1, None, 0.1, False), [], [*reference, *measurements])


@pytest.mark.parametrize(
    ("checked", "doubt"),
    [
        (compared("tensorrt:r50 fp16", correct=False), "disagrees with the checkpoint at 1066x800, batch 2"),
        (compared("tensorrt:r50 fp16", None, "no profile"), "failed at 1066x800, batch 2"),
        (compared("tensorrt:r50 fp16", batch=3), "was not compared with the checkpoint at 1066x800, batch 3"),
    ],
)
def test_a_variant_that_is_wrong_anywhere_does_not_count(checked: Measurement, doubt: str) -> None:
    engine, compiled = timed("tensorrt:r50 fp16", 1, 1.2), timed("torch-compile-cuda-fp16:r50", 1, 1.8)
    assert goals(report(checked, engine, compiled)).startswith(f"the fp16 engine {doubt}, so its times do not count (")
    # The other way round, the engine counts and there is nothing to compare it with.
    checked = replace(checked, variant=compiled.variant)
    text = f"the fp16 engine takes 1.20 ms at batch 1, compiled PyTorch {doubt}, so there is no lead ("
    assert goals(report(compared(engine.variant), checked, engine, compiled)).startswith(text)


def test_without_the_checkpoint_nothing_counts() -> None:
    engine = timed("tensorrt:r50 fp16", 1, 1.2)
    assert "was not compared with the checkpoint at 800x1066, batch 1" in goals(report(engine, reference=()))
    failed = [replace(item, correct=None, error="no memory") for item in REFERENCE]
    assert "was not compared with the checkpoint at 800x1066, batch 1" in goals(report(engine, reference=failed))


def test_goals_are_for_the_detector_at_batch_one() -> None:
    engine = [timed("tensorrt:r50 fp16", 1, 1.2), timed("tensorrt:r50 fp16", 8, 7)]
    assert goals(report(*engine)).startswith("the fp16 engine takes 1.20 ms at batch 1, compiled PyTorch was not timed (")
    text = goals(report(*engine, timed("torch-compile-cuda-fp16:r50", 1, 1.8)))
    assert "takes 1.20 ms at batch 1, 1.50 times as fast as compiled PyTorch" in text
    noisy = replace(timed("ort-cuda:r50 fp32", 1, 2), ratio_to_baseline=Ratio(1, 1, 1, 1, Noise(0.5, 0.5), False, False))
    text_of_noise = goals(report(*engine, timed("torch-compile-cuda-fp16:r50", 1, 1.5), noisy))
    assert "1.25 times as fast as compiled PyTorch, which is no difference (" in text_of_noise
    faster = goals(report(*engine, timed("torch-compile-cuda-fp16:r50", 1, 2.4), noisy))
    assert "2.00 times as fast as compiled PyTorch (" in faster
    assert text.endswith("(expected of an H200: at most 1.5 ms, and at least 1.3 times as fast)")
    assert goals(report()).startswith("the fp16 engine was not timed at batch 1")
