"""The GPU check, without one: what it says, what it writes, and that a runtime which fails does not end it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from detr_export.benchmarks.speed import gpu_check
from detr_export.benchmarks.speed.gpu_check import Measurement, line, main, measure, targets, write_results
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.session import Session

INPUTS = {"x": np.ones((2, 3), np.float32)}


class Adder(Session):
    """Adds one; closed when done with."""

    closed = 0
    runs = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        Adder.runs += 1
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] + 1}

    def close(self) -> None:
        Adder.closed += 1


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def none(index: int = 0) -> None:
        raise BackendError("no NVIDIA driver is loaded; install one")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda_opening, "open_device", none)
    assert main(["--output", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: there is no GPU to check: no NVIDIA driver is loaded; install one\n"
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_measures_and_compares() -> None:
    Adder.runs = Adder.closed = 0
    expected = {"y": np.array([[2, 2, 2], [2, 2, 2.5]], np.float32)}
    found = measure("r50", "adder", Adder, INPUTS, expected, warm_up=2, runs=5)
    assert (found.model, found.runtime, found.batch, found.error) == ("r50", "adder", 2, None)
    assert found.max_abs_diff == {"y": 0.5}
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.images_per_s == pytest.approx(2e3 / found.p50_ms)
    assert (Adder.runs, Adder.closed) == (1 + 2 + 5, 1)
    assert "adder" in line(found)


@pytest.mark.parametrize(
    ("error", "shown"),
    [(BackendError("no TensorRT"), "no TensorRT"), (RuntimeError("CUDA error\nmore"), "RuntimeError: CUDA error")],
)
def test_what_fails_is_a_result(error: Exception, shown: str) -> None:
    def fail() -> Session:
        raise error

    found = measure("r50", "broken", fail, INPUTS, {}, 1, 1)
    assert (found.error, found.p50_ms) == (shown, None)
    assert line(found).endswith(f"- {shown}")


def test_targets_are_of_the_detector_at_batch_one() -> None:
    def timed(model: str, runtime: str, batch: int, p50_ms: float) -> Measurement:
        return Measurement(model, runtime, batch, p50_ms=p50_ms)

    some = [
        timed("r50", "TensorRT fp16", 1, 1.2),
        timed("r50", "TensorRT fp16", 8, 7),
        timed("r50-panoptic", "TensorRT fp16", 1, 3),
    ]
    assert targets(some) == {"engine_ms": 1.2, "target_ms": 1.5, "lead_over_compile": None, "target_lead": 1.3}
    assert targets([*some, timed("r50", "torch.compile fp16", 1, 1.8)])["lead_over_compile"] == pytest.approx(1.5)


def test_writes_what_there_is(tmp_path: Path) -> None:
    write_results(tmp_path / "a.json", "NVIDIA H200", [Measurement("r50", "x", 1, error="none")], 1, 2)
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["gpu"] == "NVIDIA H200"
    assert document["measurements"][0]["error"] == "none"
    assert "packages" in document["environment"]


def test_every_runtime_is_tried(tmp_path: Path) -> None:
    names = set(gpu_check.runtimes(tmp_path, tmp_path))
    assert {"torch.compile fp16", "ORT CUDA fp32", "TensorRT-RTX fp16", "TensorRT fp16"} <= names
