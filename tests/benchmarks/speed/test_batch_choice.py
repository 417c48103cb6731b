"""`--batch-from`: which batch a report of detr-bench speaks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detr_export.benchmarks.speed.batch_choice import choose_batch
from detr_export.runtimes.errors import ArtifactError, DetrError, InputError


def report(path: Path, *measured: tuple[str, int, int, float]) -> Path:
    """A report with measurements of (variant, side, batch, milliseconds)."""
    document = {
        "schema": 2,
        "variants": [
            {"name": "ort:m.onnx", "backend": "ort", "target": "models/m.onnx", "precision": "fp32"},
            {"name": "ort-cuda:m.onnx", "backend": "ort-cuda", "target": "models/m.onnx"},
            {"name": "ort:other.onnx", "backend": "ort", "target": "models/other.onnx"},
        ],
        "measurements": [
            {"variant": v, "height": side, "width": side, "batch": batch, "correct": True, "session_ms": {"p50": ms}}
            for v, side, batch, ms in measured
        ],
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("times", "batch"),
    [
        ({1: 10.0, 2: 20.0, 4: 40.0}, 1),
        ({1: 10.0, 2: 10.5, 4: 20.1, 8: 40.0}, 2),  # 190, 199 and 200 images a second: 190 is 95 % of 200
        ({1: 10.0, 2: 10.6, 4: 20.1, 8: 40.0}, 4),  # 188.7 is less
        ({1: 10.0, 8: 40.0, 16: 100.0}, 8),  # it becomes slower again
    ],
)
def test_the_knee(times: dict[int, float], batch: int, tmp_path: Path) -> None:
    file = report(tmp_path / "report.json", *(("ort:m.onnx", 800, n, ms) for n, ms in times.items()))
    assert choose_batch(file, "elsewhere/m.onnx", "cpu") == batch


def test_another_backend_model_or_size_does_not_count(tmp_path: Path) -> None:
    others = [("ort-cuda:m.onnx", 800, 1, 5.0), ("ort-cuda:m.onnx", 800, 32, 6.0), ("ort:other.onnx", 800, 64, 1.0)]
    small = [("ort:m.onnx", 100, 1, 1.0), ("ort:m.onnx", 100, 16, 1.0)]
    large = [("ort:m.onnx", 800, 1, 10.0), ("ort:m.onnx", 800, 4, 11.0)]
    file = report(tmp_path / "report.json", *others, *small, *large)
    assert choose_batch(file, "m.onnx", "cpu") == 4
    assert choose_batch(file, "m.onnx", "cuda") == 32


def test_a_report_without_such_measurements(tmp_path: Path) -> None:
    file = report(tmp_path / "report.json", ("ort:m.onnx", 800, 1, 10.0), ("ort:m.onnx", 400, 2, 10.0))
    message = (
        r"no measurements of m\.onnx in the backend ort with several batches; measure them: detr-bench ort:m\.onnx --batch"
    )
    with pytest.raises(InputError, match=message):
        choose_batch(file, "m.onnx", "cpu")
    with pytest.raises(ArtifactError, match="does not exist"):
        choose_batch(tmp_path / "none.json", "m.onnx", "cpu")
    file.write_text('{"variants": []}')
    with pytest.raises(DetrError, match="lacks measurements"):
        choose_batch(file, "m.onnx", "cpu")


def test_a_report_of_this_project() -> None:
    """One that detr-bench wrote. It has one batch of each size."""
    file = Path(__file__).parents[3] / "benchmarks/results/demo-cpu/report.json"
    with pytest.raises(InputError, match="with several batches"):
        choose_batch(file, "demo.onnx", "cpu")
