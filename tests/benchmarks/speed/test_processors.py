"""The comparison of the processors: its gates must be able to shut, and its arithmetic is checked on known times."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_export.benchmarks.speed.pictures import synthetic_picture
from detr_export.benchmarks.speed.processors import outputs as imaginary
from detr_export.benchmarks.speed.processors import run as processors
from detr_export.benchmarks.speed.processors.equality import (
    require_equal_detections,
    require_equal_maps,
    require_equal_pixels,
)
from detr_export.benchmarks.speed.processors.outputs import spread_out_outputs
from detr_export.benchmarks.speed.processors.run import interleaved, make_row, run_processors
from detr_export.runtimes.cpu import instruction_sets
from detr_export.runtimes.errors import BackendError, InputError, VerificationError
from tests.benchmarks.conftest import Watcher


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks and maps of a size that takes no time."""
    monkeypatch.setattr(imaginary, "MASK_SIZE", (25, 34))
    monkeypatch.setattr(processors, "TARGET_SIZE", (50, 67))


@pytest.mark.usefixtures("small")
def test_all_steps_are_compared_and_timed() -> None:
    watcher = Watcher()
    threads = torch.get_num_threads()
    pictures = [Image.fromarray(synthetic_picture(0, (60, 80))), Image.fromarray(synthetic_picture(1, (50, 40)))]
    report = run_processors(pictures, rounds=2, torch_threads=1, progress=watcher)
    assert [(row.step, row.ours, row.reference) for row in report.rows[:6]] == 2 * [
        ("preprocess", "DetrImageProcessor", "DetrImageProcessor"),
        ("preprocess", "DetrImageProcessorFast", "DetrImageProcessorFast"),
        ("preprocess", "DetrImageProcessor", "DetrImageProcessorFast"),
    ]
    assert report.rows[0].agreement == report.rows[3].agreement == "bit-equal"
    assert [row.input for row in report.rows[:6:3]] == ["2 images, each by itself", "2 images, in one batch"]
    assert [row.step for row in report.rows[6:]] == 2 * ["detections", "instances", "panoptic"]
    assert {row.input for row in report.rows[6:]} == {"100 of 100 queries kept", "20 of 100 queries kept"}
    assert len(watcher.stages) == 7
    assert all(len(row.ours_ms.samples) == len(row.reference_ms.samples) == 2 for row in report.rows)
    assert report.torch_threads == 1
    assert torch.get_num_threads() == threads
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["images_px"] == [[60, 80], [50, 40]]
    assert document["instruction_sets"] == instruction_sets()
    assert document["processing_threads"] >= 1
    assert document["rows"][0]["ours_ms"]["p50"] == report.rows[0].ours_ms.p50
    lines = report.summary().splitlines()
    assert len(lines) == 1 + len(report.rows) + 3
    assert lines[0].split()[:2] == ["step", "input"]
    assert "transformers 4." in lines[-1]
    assert max(map(len, lines[:-1])) < 180


@pytest.mark.usefixtures("small")
def test_a_side_that_differs_is_an_error_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "interleaved", lambda *_: pytest.fail("timed"))
    preprocess = processors.DetrImageProcessor.preprocess

    def brighter(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = preprocess(self, *args, **kwargs)
        return {**batch, "pixel_values": batch["pixel_values"] + np.float32(1e-6)}

    monkeypatch.setattr(processors.DetrImageProcessor, "__call__", brighter)
    with pytest.raises(VerificationError, match="pixels of the two sides differ by"):
        run_processors([Image.fromarray(synthetic_picture(0, (60, 80)))], rounds=1)


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    sides: list[Callable[[], None]] = [lambda: order.append("a"), lambda: order.append("b")]
    seconds = interleaved(sides, rounds=3)
    assert order == list("ababab")
    assert [len(side) for side in seconds] == [3, 3]


def test_ratios_are_taken_within_rounds() -> None:
    """The machine is ten times slower in the last round: the ratio does not notice."""
    row = make_row("step", "input", ("A", "B"), "bit-equal", ([0.2, 0.4, 3.0], [0.4, 1.0, 10.0]), images=2)
    assert row.ours_ms.samples == (100.0, 200.0, 1500.0)
    assert (row.ours_ms.p50, row.reference_ms.p50) == (200.0, 500.0)
    assert row.ratio_to_reference == pytest.approx(0.4)
    assert (row.ratio_low, row.ratio_high) == pytest.approx((0.32, 0.48))  # of 0.3, 0.4, 0.5


def pixels(value: float, mask: int = 1) -> dict[str, np.ndarray]:
    return {"pixel_values": np.full((1, 3, 4, 4), value, np.float32), "pixel_mask": np.full((1, 4, 4), mask)}


def test_pixels_must_be_equal_bit_for_bit_unless_a_step_is_allowed() -> None:
    assert require_equal_pixels(pixels(0.5), pixels(0.5)) == 0
    assert require_equal_pixels(pixels(0.5), pixels(0.51), step=0.02) == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(VerificationError, match=r"differ by 0\.01"):
        require_equal_pixels(pixels(0.5), pixels(0.51), step=0.005)
    with pytest.raises(VerificationError, match="differ by nan"):
        require_equal_pixels(pixels(0.5), pixels(float("nan")), step=1)
    with pytest.raises(VerificationError, match="pixel masks"):
        require_equal_pixels(pixels(0.5), pixels(0.5, mask=0), step=1)


def test_detections_must_be_equal_up_to_the_rounding_of_scores() -> None:
    ours = {"labels": np.array([1, 2]), "boxes": np.ones((2, 4), np.float32), "scores": np.array([0.5, 0.6])}
    assert require_equal_detections(ours, ours) == "bit-equal"
    assert require_equal_detections(ours, {**ours, "scores": ours["scores"] + 5e-6}) == "scores within 1e-05"
    for change in ({"scores": ours["scores"] + 1e-3}, {"labels": np.array([2, 1])}, {"boxes": 2 * ours["boxes"]}):
        with pytest.raises(VerificationError, match="the detections of the two sides differ"):
            require_equal_detections(ours, {**ours, **change})


def test_maps_may_differ_where_two_masks_tie() -> None:
    ids = np.zeros((200, 200), np.int32)
    segments = [{"id": 1, "label_id": 3, "was_fused": False, "score": 0.9}]
    ours = {"segmentation": ids, "segments_info": segments}
    assert require_equal_maps(ours, {**ours, "segmentation": torch.from_numpy(ids)}) == "all pixels equal"
    tied = ids.copy()
    tied[0, :2] = 1
    assert require_equal_maps(ours, {**ours, "segmentation": tied}) == "all but 5.0e-05 of the pixels"
    tied[0] = 1
    with pytest.raises(VerificationError, match=r"5.00e-03 of the pixels differ .* segments are the same"):
        require_equal_maps(ours, {**ours, "segmentation": tied})
    for other in ([], [{**segments[0], "label_id": 4}], [{**segments[0], "score": 0.8}]):
        with pytest.raises(VerificationError, match="segments are not the same"):
            require_equal_maps(ours, {**ours, "segments_info": other})


def test_the_imaginary_outputs_are_a_models() -> None:
    outputs = spread_out_outputs(20)
    assert {name: array.shape for name, array in outputs.items()} == {
        "logits": (1, 100, 251),
        "pred_boxes": (1, 100, 4),
        "pred_masks": (1, 100, 200, 267),
    }
    assert (outputs["logits"][0].argmax(axis=1) != 250).sum() == 20
    assert 0 <= outputs["pred_boxes"].min() <= outputs["pred_boxes"].max() <= 1
    assert all(np.array_equal(outputs[name], spread_out_outputs(20)[name]) for name in outputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"torch_threads": 0}, "torch_threads is 0; expected at least 1"),
        ({"images": []}, "there are no images; expected at least one"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_processors(**arguments)


@pytest.mark.parametrize("package", ["transformers", "torchvision"])
def test_a_missing_oracle_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = processors.importlib.util.find_spec
    monkeypatch.setattr(
        processors.importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
    )
    with pytest.raises(BackendError, match=rf"{package} is not installed; run: pip install 'detr-export\[oracle\]'"):
        run_processors(rounds=1)
