"""A line for each of few pictures; a bar and totals for many."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from detr_export.prediction_report import FEW, PredictionReport
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.file_batches import FilePrediction
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.sources import source_of
from detr_export.runtimes.totals import Totals
from tests.detr_export.test_terminal import FakeTerminal


def outcome(number: int, *names: str, more: bool = False) -> FilePrediction:
    zeros = np.zeros(len(names), np.float32)
    boxes = np.zeros((len(names), 4), np.float32)
    found = Detections(zeros, zeros.astype(np.int64), boxes, names, (10, 10))
    return FilePrediction(source_of(Path(f"{number}.jpg")), found, has_more_pages=more)


def failure(number: int) -> FilePrediction:
    return FilePrediction(source_of(Path(f"{number}.jpg")), error=ImageError(f"{number}.jpg is bad"))


def report(outcomes: list[FilePrediction], as_json: bool = False) -> Totals:
    with PredictionReport(len(outcomes), as_json) as reporting:
        for item in outcomes:
            reporting.add(item)
    return reporting.totals


def test_few_pictures_get_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    totals = report([outcome(0, "cat", "dog", "cat"), failure(1), *(outcome(n) for n in range(2, FEW))])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == ["0.jpg: 2 cat, 1 dog", "2.jpg: nothing found"]
    assert len(printed.out.splitlines()) == FEW - 1
    assert printed.err == "error: 1.jpg is bad\n"
    assert (totals.pictures, totals.failed, totals.with_more_pages) == (FEW, 1, 0)


def test_many_pictures_get_totals(capsys: pytest.CaptureFixture[str]) -> None:
    totals = report([outcome(0, *["cat"] * 9, "dog"), failure(1), *(outcome(n, "zebra", more=True) for n in range(2, 14))])
    printed = capsys.readouterr()
    first, *classes = printed.out.splitlines()
    assert first.startswith("14 pictures in ")
    assert first.endswith(" a second; 1 failed")
    assert classes == ["  zebra  12", "  cat     9", "  dog     1"]
    assert printed.err == "error: 1.jpg is bad\n"
    assert totals.with_more_pages == 12


def test_the_speed_is_that_of_all_pictures() -> None:
    totals = Totals()
    for number in range(20):
        totals.add(outcome(number))
    assert totals.summary(8.0) == "20 pictures in 8.0 s, 2.5 a second\n  nothing found"


@pytest.mark.parametrize("pictures", [FEW, FEW + 1])
def test_a_bar_shows_how_far_many_pictures_are(
    pictures: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with PredictionReport(pictures, False) as reporting:
        for _ in range(4):
            reporting.add(outcome(0))
        bar = reporting._progress._bar
        assert bar is None if pictures <= FEW else (bar.n, bar.total) == (4, pictures)
    assert terminal.getvalue() == "" or terminal.getvalue().endswith("\r")


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    report([outcome(0, "cat"), failure(1)] * FEW, as_json=True)
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert len(document) == 2 * FEW
    assert document[:2] == [outcome(0, "cat").to_dict(), failure(1).to_dict()]
    assert printed.err.count("error: ") == FEW


def test_after_an_exception_there_are_no_totals(capsys: pytest.CaptureFixture[str]) -> None:
    reporting = PredictionReport(20, False)
    reporting.add(outcome(0))
    reporting.__exit__(KeyboardInterrupt)
    assert capsys.readouterr().out == ""
