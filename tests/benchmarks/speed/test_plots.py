"""Plots of reports: which are drawn, what is written in them, and that no report is too odd to draw."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from detr_export.benchmarks.speed.plots.accuracy import draw_accuracy
from detr_export.benchmarks.speed.plots.breakdown import draw_breakdown
from detr_export.benchmarks.speed.plots.drawing import caption, draw_all
from detr_export.benchmarks.speed.plots.growth import draw_growth
from detr_export.benchmarks.speed.plots.latency import draw_latency
from detr_export.benchmarks.speed.plots.style import short_labels, style_of
from detr_export.runtimes.errors import OutputError

NAMES = ("torch:demo", "ort:model.onnx", "openvino:model.onnx")


def timing(samples: list[float]) -> dict[str, Any]:
    p50, p90, p95, p99 = np.percentile(samples, (50, 90, 95, 99)).tolist()
    return {"min": min(samples), "p50": p50, "p90": p90, "p95": p95, "p99": p99, "samples": samples}


def measurement(name: str, size: tuple[int, int], batch: int, median: float) -> dict[str, Any]:
    session = [median * factor for factor in (0.9, 0.95, 1.0, 1.05, 1.3)]
    return {
        "variant": name,
        "height": size[0],
        "width": size[1],
        "batch": batch,
        "correct": True,
        "preprocess_ms": timing([20.0, 21.0]),
        "session_ms": timing(session),
        "postprocess_ms": timing([1.0, 2.0]),
        "end_to_end_ms": timing([value + 22 for value in session]),
        "error": None,
    }


def report(*groups: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "schema": 1,
        "started": "2026-01-02T03:04:05+00:00",
        "environment": {
            "cpu": "Some CPU",
            "cores": 2,
            "os": "Linux",
            "python": "3.11.7",
            "gpu": None,
            "driver": None,
            "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0", "rich": "15.0.0"},
            "threads": 2,
        },
        "method": {"rounds": 5, "interrupted": False},
        "variants": [{"name": name, "error": None} for name in NAMES],
        "measurements": [
            measurement(name, (height, width), batch, 100 * (index + 1) * batch * height * width / 640 / 480)
            for height, width, batch in groups
            for index, name in enumerate(NAMES)
        ],
        "accuracy": [],
    }


def accuracy(name: str, **scores: float | None) -> dict[str, Any]:
    return {"variant": name, "images": 8, "box_AP": None, "box_AP50": None, "mask_AP": None, "PQ": None, **scores}


ONE = (480, 640, 1)


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def texts(figure: Figure | None) -> str:
    assert figure is not None
    return "\n".join(text.get_text() for panel in figure.axes for text in panel.texts)


def test_what_there_is_data_for_is_drawn(tmp_path: Path) -> None:
    document = report(ONE)
    assert names(draw_all(document, tmp_path / "new")) == ["latency.png", "breakdown.png"]
    document = report(ONE, (800, 1066, 1))
    assert names(draw_all(document, tmp_path)) == ["latency.png", "breakdown.png", "cost_over_size.png"]
    document["accuracy"] = [accuracy(name, box_AP=0.4) for name in NAMES]
    files = draw_all(document, tmp_path)
    assert names(files) == ["latency.png", "breakdown.png", "cost_over_size.png", "accuracy.png"]
    for file in files:
        with Image.open(file) as plot:
            assert plot.format == "PNG"
            assert min(plot.size) > 300
            assert np.asarray(plot.convert("L")).std() > 5
    assert {path.name for path in tmp_path.iterdir()} == {"new", *names(files)}  # no temporary file is left


def test_a_report_that_was_read_back_draws_the_same(tmp_path: Path) -> None:
    document = report(ONE)
    draw_all(document, tmp_path / "one")
    draw_all(json.loads(json.dumps(document)), tmp_path / "two")
    for name in ("latency.png", "breakdown.png"):
        one, two = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("one", "two"))
        assert np.array_equal(one, two)


def test_medians_and_percentiles_are_written() -> None:
    found = texts(draw_latency(report(ONE)))
    assert "100 ms (p95 125 ms)" in found
    assert "300 ms (p95 375 ms)" in found
    found = texts(draw_breakdown(report(ONE)))
    assert "122 ms, in one go 122 ms" in found


def test_a_bar_is_as_long_as_its_label_says() -> None:
    """The steps and the whole are timed in runs of their own, so their medians may differ."""
    document = report(ONE)
    document["measurements"][0]["end_to_end_ms"] = timing([200.0])
    figure = draw_breakdown(document)
    assert figure is not None
    (panel,) = figure.axes
    end = max(bar.get_x() + bar.get_width() for bar in panel.patches if round(bar.get_y() + bar.get_height() / 2) == 0)
    assert end == pytest.approx(122)
    assert "122 ms, in one go 200 ms" in texts(figure)
    assert [line.get_xdata()[0] for line in panel.lines] == pytest.approx([200, 222, 322])


def test_disturbed_variants_are_marked() -> None:
    document = report(ONE)
    few, most, all_ = document["measurements"]
    for item, disturbed in ((few, 2), (most, 3), (all_, 5)):
        item.update(rounds=5, disturbed_rounds=disturbed)
    for figure in (draw_latency(document), draw_breakdown(document)):
        assert texts(figure).count(", disturbed") == 2


def test_wrong_and_failed_variants_are_marked(tmp_path: Path) -> None:
    document = report(ONE)
    _, wrong, failed = document["measurements"]
    for item in (wrong, failed):
        item.update(dict.fromkeys(("preprocess_ms", "session_ms", "postprocess_ms", "end_to_end_ms")))
    wrong["correct"] = False
    failed.update(correct=None, error="the\nsize is refused " + 20 * "at length ")
    for figure in (draw_latency(document), draw_breakdown(document)):
        found = texts(figure)
        assert "WRONG: its outputs differ, so it was not timed" in found
        assert "failed: the size is refused" in found
        assert max(map(len, found.splitlines())) <= 90
    document["variants"][2]["error"] = "openvino is not installed"
    del document["measurements"][2]
    assert "failed: openvino is not installed" in texts(draw_latency(document))
    document["variants"].append({"name": "later", "error": None})
    assert "not measured" in texts(draw_latency(document))
    assert len(draw_all(document, tmp_path)) == 2


def test_a_variant_that_was_timed_and_is_wrong_says_so() -> None:
    document = report(ONE)
    document["measurements"][0]["correct"] = False
    assert "100 ms (p95 125 ms), WRONG outputs" in texts(draw_latency(document))


def test_samples_far_out_are_counted_and_do_not_squeeze_the_rest() -> None:
    document = report(ONE)
    document["measurements"][0]["session_ms"]["samples"] += [5000.0, 6000.0]
    figure = draw_latency(document)
    assert figure is not None
    assert "2 above 450 ms" in texts(figure)
    assert figure.axes[0].get_xlim()[1] < 1000


def test_a_quartile_far_out_does_not_push_its_text_out_of_the_panel(tmp_path: Path) -> None:
    document = report(ONE)
    for item in document["measurements"]:  # two runs, one of which was held up: the upper quartile is beyond the scale
        item["session_ms"] = timing([10.0, 1000.0])
    figure = draw_latency(document)
    assert figure is not None
    (panel,) = figure.axes
    right = panel.get_xlim()[1]
    assert all(text.get_position()[0] < right for text in panel.texts)
    assert "latency.png" in names(draw_all(document, tmp_path))  # matplotlib warns where a text leaves no room


BROKEN = {
    "nothing": lambda document: document.clear(),
    "no measurements": lambda document: document["measurements"].clear(),
    "no session": lambda document: [item.update(session_ms=None) for item in document["measurements"]],
    "no samples": lambda document: [item["session_ms"].update(samples=[]) for item in document["measurements"]],
}
ODD = {
    "no environment": lambda document: document.pop("environment"),
    "no method": lambda document: document.pop("method"),
    "no variants": lambda document: document.pop("variants"),
    "one sample": lambda document: [item.update(session_ms=timing([3.0])) for item in document["measurements"]],
    "times of zero": lambda document: [item.update(session_ms=timing([0.0, 0.0])) for item in document["measurements"]],
    "None among samples": lambda document: document["measurements"][0]["session_ms"]["samples"].append(None),
    "no medians": lambda document: [item["session_ms"].pop("p50") for item in document["measurements"]],
    "accuracy of strangers": lambda document: document["accuracy"].append(accuracy("someone", box_AP=0.1)),
    "accuracy of nothing": lambda document: document["accuracy"].append(accuracy(NAMES[0])),
}


@pytest.mark.parametrize("lacking", BROKEN)
def test_a_report_without_times_draws_nothing(lacking: str, tmp_path: Path) -> None:
    document = report(ONE)
    BROKEN[lacking](document)
    assert draw_all(document, tmp_path) == []


@pytest.mark.parametrize("oddity", ODD)
def test_an_odd_report_is_drawn(oddity: str, tmp_path: Path) -> None:
    document = report(ONE, (480, 640, 2), (800, 1066, 1))
    ODD[oddity](document)
    before = copy.deepcopy(document)
    assert "latency.png" in names(draw_all(document, tmp_path))
    assert document == before


def test_growth_is_over_pixels_and_over_batches() -> None:
    figure = draw_growth(report((480, 640, 1), (240, 320, 1), (480, 640, 2), (480, 640, 4)))
    assert figure is not None
    sizes, batches = figure.axes
    (first, *_) = sizes.get_lines()
    np.testing.assert_allclose(first.get_xdata(), [240 * 320, 480 * 640])
    np.testing.assert_allclose(first.get_ydata(), [25, 100])
    (first, *_) = batches.get_lines()
    np.testing.assert_allclose(first.get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(first.get_ydata(), [100, 100, 100])  # an image
    assert "ms an image" in batches.get_ylabel()
    assert [label.get_text() for label in sizes.get_xticklabels()] == ["240x320\n0.077", "480x640\n0.31"]


def test_accuracy_has_a_panel_a_score_and_a_point_a_variant() -> None:
    document = report(ONE)
    document["accuracy"] = [
        accuracy(NAMES[0], box_AP=0.4, PQ=0.3),
        accuracy(NAMES[1], box_AP=0.5),
        accuracy("other", PQ=1.0),
    ]
    figure = draw_accuracy(document)
    assert figure is not None
    box, panoptic = figure.axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in box.get_lines()] == [(100, 0.4), (200, 0.5)]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in panoptic.get_lines()] == [(100, 0.3)]
    assert "box AP" in box.get_ylabel()


def test_no_text_of_a_full_plot_lies_outside_it_or_on_its_neighbour() -> None:
    long = [f"ort:/a/long/path/to/some/models/of/2026/detr-resnet-50-simplified-number-{index}.onnx" for index in range(6)]
    document = report(ONE, (800, 1066, 1))
    document["variants"] = [{"name": name, "error": None} for name in long]
    document["measurements"] = [
        measurement(name, size, 1, 700.0 + index) for size in ((480, 640), (800, 1066)) for index, name in enumerate(long)
    ]
    document["measurements"][0]["session_ms"]["samples"].append(9999.0)
    for draw in (draw_latency, draw_breakdown):
        figure = draw(document)
        assert figure is not None
        FigureCanvasAgg(figure).draw()
        for panel in figure.axes:
            boxes = [text.get_window_extent() for text in (*panel.texts, *panel.get_yticklabels())]
            assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
            outer = [text.get_window_extent() for text in panel.get_yticklabels()]
            assert not any(one.overlaps(two) for index, one in enumerate(outer) for two in outer[:index])


def test_long_names_are_shortened_and_stay_apart() -> None:
    assert short_labels(["torch:demo"]) == {"torch:demo": "torch:demo"}
    names = [f"ort:/home/{user}/a/very/long/path/to/the/models/model.onnx" for user in ("one", "two", "three")]
    labels = short_labels(names, length=20)
    assert list(labels) == names
    assert list(labels.values()) == ["ort:…/model.onnx", "ort:…/model.onnx (2)", "ort:…/model.onnx (3)"]
    (label,) = short_labels([50 * "x"], length=20).values()
    assert len(label) == 20


def test_the_caption_names_machine_and_software() -> None:
    text = caption(report(ONE)).replace("\n", " ")
    for part in (
        "Some CPU",
        "2 cores",
        "2 threads a run",
        "Python 3.11.7",
        "torch 2.13.0",
        "onnxruntime 1.32.0",
        "2026-01-02",
    ):
        assert part in text
    assert "rich" not in text
    assert "INTERRUPTED" in caption({"method": {"interrupted": True}})
    assert caption({}) == ""


def test_more_variants_than_colours_are_told_apart_by_markers() -> None:
    document = {"variants": [{"name": str(index)} for index in range(16)]}
    assert len({style_of(document, str(index)) for index in range(16)}) == 16


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        draw_all(report(ONE), tmp_path / "file")
