"""End-to-end files in the benchmark: beside plain ones, in OpenVINO, and what they cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from detr_export.benchmarks import run
from detr_export.benchmarks.cost.model import model_cost
from detr_export.benchmarks.cost.profiling import profile_ort
from detr_export.benchmarks.speed import end_to_end_cost
from detr_export.benchmarks.speed.agreement import largest_differences, relative_detections, tolerance, within
from detr_export.benchmarks.speed.pictures import synthetic_picture
from detr_export.benchmarks.speed.worker import Open, Prepare, Worker
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.end_to_end.composing import pixels_part, plain_part
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.backends.openvino.session import OpenVinoSession
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import InputError

SIZE = (96, 128)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint end to end."""
    output = tmp_path_factory.mktemp("whole") / "whole.onnx"
    options = ExportOptions(verify=False, simplify=False, end_to_end=True)
    return export_onnx(load_checkpoint(tiny_checkpoint), output, options).path


def test_beside_a_plain_file(whole: Path, tiny_onnx: Path) -> None:
    """Without a size, pictures have the usual one."""
    targets = [str(whole), str(tiny_onnx), f"openvino:{whole}"]
    report = run(targets, batches=[2], threads=1, rounds=1, runs=1, callers=0, profile=True, noise=False)
    assert report.problems() == []
    assert [(item.size, item.correct, set(item.largest_difference)) for item in report.measurements] == [
        ("480x640", True, {"scores", "labels", "boxes"})
    ] * 3
    assert [item.work is not None for item in report.measurements] == [True, False, True]
    assert [item["variant"] for item in report.profiles] == ["ort:whole.onnx", "ort:tiny.onnx"]
    assert report.profiles[0]["parts"]["processing"] > 0
    assert report.profiles[1]["parts"]["processing"] == 0
    assert "sizes are those of the pictures that come in" in report.notes[0]


def test_the_size_of_tensors_is_refused(whole: Path) -> None:
    worker = Worker()
    worker.handle(Open("ort", str(whole), 1))
    with pytest.raises(InputError, match="an end-to-end file takes pictures, and is measured with the size of those"):
        worker.handle(Prepare(*SIZE, ((synthetic_picture(),),)))


def test_the_resize_is_counted(whole: Path, tiny_onnx: Path) -> None:
    height, width = SIZE
    pixels = onnx.load(str(whole))
    onnx.save(pixels_part(pixels), str(whole.parent / "pixels.onnx"))
    with OrtSession(whole.parent / "pixels.onnx", threads=1) as part:
        new_height, new_width = part.run({"image": np.zeros((1, *SIZE, 3), np.uint8)})["pixel_values"].shape[2:]
    cost, plain = model_cost(whole, *SIZE, 1), model_cost(tiny_onnx, new_height, new_width, 1)
    resize = 3 * height * width * new_width + 3 * new_height * height * new_width
    assert cost.parts["processing"] * 1e9 == pytest.approx(resize)
    for part in ("backbone", "encoder", "decoder", "heads"):
        assert cost.parts[part] == pytest.approx(plain.parts[part])


def test_a_plain_file_is_profiled_at_the_size_that_pictures_are_resized_to(tiny_onnx: Path) -> None:
    found = profile_ort(tiny_onnx, 48, 64, 1, threads=1, runs=1, of_picture=True)
    assert found["height"] == 48
    assert found["parts"]["backbone"] > 0


def test_detections_that_are_wrong_are_seen() -> None:
    generator = np.random.default_rng(0)
    raw = {
        "logits": generator.normal(0, 3, (2, 9, 6)).astype(np.float32),
        "pred_boxes": generator.uniform(0.2, 0.8, (2, 9, 4)).astype(np.float32),
    }
    found = relative_detections(raw, [SIZE] * 2)
    limits = tolerance("fp32")
    assert within(largest_differences(found, found), limits)
    assert not within(largest_differences({**found, "labels": found["labels"] + 1}, found), limits)
    assert not within(largest_differences({**found, "boxes": found["boxes"] + 0.1}, found), limits)
    assert not within(largest_differences({**found, "scores": found["scores"] * 0.5}, found), limits)
    assert not within({}, limits)
    fewer = {name: values[:, :4] for name, values in found.items()}
    assert within(largest_differences(fewer, found), limits)


# ---- OpenVINO -----------------------------------------------------------------------------------------------------------


def test_openvino_makes_the_same_pixels(whole: Path, tmp_path: Path) -> None:
    """The same levels. A weight may be rounded otherwise, if a CPU's division is not that of IEEE 754."""
    file = tmp_path / "pixels.onnx"
    onnx.save(pixels_part(onnx.load(str(whole))), str(file))
    with OrtSession(file, threads=1) as one, OpenVinoSession(file, threads=1) as other:
        for size in ((48, 64), (37, 61), (100, 100), (240, 320), (1, 298)):
            image = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
            pixels, theirs = (session.run({"image": image})["pixel_values"] for session in (one, other))
            assert pixels.shape == theirs.shape
            assert (np.abs(pixels - theirs) > 1e-6).mean() < 1e-4
            assert np.abs(pixels - theirs).max() < 0.02  # one level: 1 / 255 / 0.225


def test_openvino_finds_the_same(whole: Path) -> None:
    images = np.stack([synthetic_picture(seed, SIZE) for seed in range(2)])
    with OrtSession(whole, threads=1) as one, OpenVinoSession(whole, threads=1) as other:
        differences = largest_differences(
            *(relative_detections(item.run({"image": images}), [SIZE] * 2) for item in (other, one))
        )
    assert within(differences, {"scores": 1e-2, "labels": 0.0, "boxes": 1e-2})


# ---- what it costs ------------------------------------------------------------------------------------------------------


def test_the_cost_is_measured(whole: Path, tiny_onnx: Path) -> None:
    found = end_to_end_cost.measure(tiny_onnx, [whole], SIZE, threads=1, rounds=2)
    for runtime in ("ort", "openvino"):
        assert list(found[runtime]["ms"]) == ["plain graph", "pipeline", "whole.onnx"]
        assert all(len(values) == 2 for values in found[runtime]["ms"].values())
        assert found[runtime]["ratio_of_medians"]["plain graph"] == 1
    assert [value.name for value in plain_part(onnx.load(str(whole))).graph.input] == ["pixel_values"]


def test_ratios_are_to_the_first() -> None:
    found = end_to_end_cost.summarize({"plain": [10.0, 20.0, 30.0], "other": [11.0, 30.0, 30.0]})
    assert found["ratio_of_medians"] == {"plain": 1, "other": 1.5}
    assert found["ratio_of_minima"] == {"plain": 1, "other": 1.1}
    assert found["median_of_ratios"] == {"plain": 1, "other": 1.1}
