"""Plots of an evaluation: which files there are, what is written in them, and that odd cases can be drawn."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from detr_export.benchmarks.accuracy.confusion import NOTHING, ConfusionMatrix, confusion_matrix
from detr_export.benchmarks.accuracy.curves import RECALLS, BestThreshold, ClassCurve, Curves, curves
from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.benchmarks.accuracy.drawing import draw_confusion, draw_curves
from detr_export.benchmarks.accuracy.plots import write_plots
from detr_export.runtimes import OutputError
from tests.benchmarks.accuracy.test_curves import evaluator_of, random_case
from tests.benchmarks.accuracy.test_detection_evaluator import CATEGORIES

NAMES = ["confusion_matrix.csv", "confusion_matrix.png", "precision_recall.csv", "precision_recall.png", "thresholds.csv"]


def rows(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.reader(text))


@pytest.fixture(scope="module")
def evaluator() -> CocoEvaluator:
    return evaluator_of(*random_case(1), ("bbox", "segm"))


@pytest.fixture(scope="module")
def folder(evaluator: CocoEvaluator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots") / "new" / "folder"
    assert sorted(write_plots(evaluator, folder)) == sorted(folder.iterdir())
    return folder


def test_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, *(f"mask_{name}" for name in NAMES)])
    for file in folder.glob("*.png"):
        with Image.open(file) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 200


@pytest.mark.parametrize(("prefix", "iou_type"), [("", "bbox"), ("mask_", "segm")])
def test_tables_are_the_numbers(prefix: str, iou_type: str, folder: Path, evaluator: CocoEvaluator) -> None:
    head, *cells = rows(folder / f"{prefix}confusion_matrix.csv")
    assert head[1:] == [row[0] for row in cells] == [*CATEGORIES.values(), NOTHING]
    assert [[int(cell) for cell in row[1:]] for row in cells] == confusion_matrix(evaluator, iou_type).counts.tolist()

    found = curves(evaluator, iou_type)
    assert found.mean is not None
    _, *points = rows(folder / f"{prefix}precision_recall.csv")
    for item in (found.mean, *found.classes):
        own = np.array([[float(cell) for cell in row[1:]] for row in points if row[0] == item.name])
        assert np.array_equal(own, np.stack([RECALLS.round(2), item.precision_50, item.precision], axis=1))

    _, *thresholds = rows(folder / f"{prefix}thresholds.csv")
    assert [row[0] for row in thresholds] == ["(all classes)", *CATEGORIES.values()]
    for row, item in zip(thresholds, (found.mean, *found.classes), strict=True):
        assert item.best is not None
        expected = [item.annotations, item.best.threshold, item.best.f1, item.best.precision, item.best.recall]
        assert [float(cell) for cell in row[1:]] == expected


def test_a_folder_with_files_is_refused(evaluator: CocoEvaluator, tmp_path: Path) -> None:
    boxes = evaluator_of(*random_case(2))
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty; add --overwrite"):
        write_plots(boxes, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
    with pytest.raises(OutputError, match="is not a folder"):
        write_plots(boxes, tmp_path / "own.txt")
    write_plots(evaluator, tmp_path, overwrite=True)
    write_plots(boxes, tmp_path, overwrite=True)  # those of the masks would look like this model's
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "own.txt"])


# ---- pictures -----------------------------------------------------------------------------------------------------------


def drawn(figure: Figure) -> list[str]:
    """All texts of a figure, once it has been laid out."""
    FigureCanvasAgg(figure).draw()
    legend = [text.get_text() for item in figure.legends for text in item.get_texts()]
    panels = [text for panel in figure.axes for text in (*panel.texts, *panel.get_xticklabels(), *panel.get_yticklabels())]
    return [*legend, *(text.get_text() for text in panels), *(text.get_text() for text in figure.texts)]


def matrix(classes: int) -> ConfusionMatrix:
    counts = np.diag([1000 + index for index in range(classes + 1)])
    counts[-1, -1] = 0
    return ConfusionMatrix(tuple(f"class {index}" for index in range(classes)), counts)


@pytest.mark.parametrize("classes", [0, 1, 4, 25, 80])
def test_all_classes_and_numbers_are_in_the_matrix(classes: int) -> None:
    figure = draw_confusion(matrix(classes), "boxes")
    texts = drawn(figure)
    for index in range(classes):
        assert texts.count(f"class {index}") == 2
        assert f"{1000 + index}" in texts
    assert any("score above 0.5, matched at an IoU of 0.5" in text for text in texts)

    # Labels do not cover each other, and numbers fit their cells.
    panel = figure.axes[0]
    boxes = [label.get_window_extent() for label in panel.get_xticklabels()]
    assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
    cell = np.ptp(panel.transData.transform([(0, 0), (1, 1)]), axis=0).min()
    assert all(text.get_window_extent().width < cell for text in panel.texts)


def test_classes_that_do_not_occur_are_not_drawn() -> None:
    counts = np.zeros((4, 4), dtype=int)
    counts[1, 3] = 5
    texts = drawn(draw_confusion(ConfusionMatrix(("a", "b", "c"), counts), "masks"))
    assert "b" in texts
    assert not {"a", "c"} & set(texts)
    assert any("Classes that do not occur are left out: 2." in text for text in texts)


def curve(name: str, height: float, best: BestThreshold | None = None) -> ClassCurve:
    line = np.where(height > RECALLS, height, 0)
    return ClassCurve(name, 3, line, line / 2, best)


@pytest.mark.parametrize("classes", [1, 4, 7, 8, 80])
def test_the_legend_has_the_areas(classes: int) -> None:
    items = tuple(curve(f"class {index}", (index + 1) / 100, BestThreshold(0.5, 0.5, 0.5)) for index in range(classes))
    figure = draw_curves(Curves(items, curve("(all classes)", 0.5)), "boxes")
    texts = drawn(figure)
    many = classes > 7
    named = items[:5] if many else items  # the first have the lowest AP
    for item in named:
        assert f"{item.ap_50:.3f}  {item.ap:.3f}  {item.name}" in texts
    assert any("(all classes)" in text for text in texts) == (classes > 1)
    assert (f"the other {classes - 5}" in texts) == many
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == len(RECALLS)]
    assert len(lines) >= classes


def test_odd_names_and_nothing_to_draw() -> None:
    names = ("_hidden", "5$ or 10$", "n" * 60)
    counts = np.ones((4, 4), dtype=int)
    texts = drawn(draw_confusion(ConfusionMatrix(names, counts), "boxes"))
    assert {"_hidden", "5$ or 10$"} <= set(texts)
    assert "n" * 27 + "…" in texts
    legend = drawn(draw_curves(Curves(tuple(curve(name, 0.5) for name in names), curve("(all classes)", 0.5)), "boxes"))
    assert any(text.endswith("_hidden") for text in legend)
    assert any("nothing is annotated" in text for text in drawn(draw_curves(Curves((), None), "boxes")))
