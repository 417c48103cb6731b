"""The comparison of panoptic segmentations: every variant runs, and divides a picture by as many queries as it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detr_export.benchmarks.speed import panoptic_cost
from detr_export.benchmarks.speed.pictures import synthetic_picture
from detr_export.runtimes import Predictor

SIZE = (96, 131)


def test_all_variants_take_part(
    segmenter: Path, segmenter_onnx: Path, segmenter_one_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panoptic_cost, "_peak_memory", lambda *arguments: 5)  # each would start a process
    opened = panoptic_cost.variants(str(segmenter), str(segmenter_onnx), str(segmenter_one_graph), threads=1)
    found = panoptic_cost.measure(opened, str(segmenter_onnx), SIZE, [2, 9], rounds=2)
    assert list(found) == ["2 of 9 queries", "9 of 9 queries"]
    for case in found.values():
        assert case["refused"] == {}
        assert list(case["ms"]) == list(opened)
        assert all(len(times) == 2 for times in case["ms"].values())
        assert case["ratio_of_medians"]["transformers"] == 1
        assert case["peak_memory_bytes"] == dict.fromkeys(opened, 5)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_threshold_lets_so_many_queries_survive(count: int, segmenter_onnx: Path) -> None:
    with Predictor.load(segmenter_onnx) as predictor:
        scores = np.sort(predictor.detect(synthetic_picture(0, SIZE), threshold=0).scores)[::-1]
    assert (scores > panoptic_cost._between(scores, count)).sum() == count


def test_memory_is_that_of_another_process() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    small, large = (panoptic_cost._peak_memory((_taking, (size,)), picture, 0.5) for size in (1, 300))
    assert 250e6 < large - small < 400e6


def _taking(megabytes: int) -> panoptic_cost.Segment:
    return lambda picture, threshold: np.ones(megabytes * 10**6, np.uint8).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "two.onnx", "one.onnx"], "error: missing does not exist"),
        ([".", ".", ".", "--rounds", "0"], "error: rounds and segments are counts; expected numbers from 1"),
        ([".", ".", ".", "--size", "5"], "error: size is '5'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        panoptic_cost.main(arguments)
