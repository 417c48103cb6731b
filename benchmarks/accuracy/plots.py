"""Writes what an evaluation found as pictures and tables: confusion, precision over recall, score thresholds.

    confusion_matrix.png, .csv    what is taken for what
    precision_recall.png, .csv    precision over recall for each class
    thresholds.csv                the score threshold with the best F1, for each class and for all

If masks are scored, there are the same files of masks: mask_confusion_matrix.png, ...
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detr_export.benchmarks.accuracy.confusion import ConfusionMatrix, confusion_matrix
from detr_export.benchmarks.accuracy.curves import RECALLS, ClassCurve, Curves, curves
from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.runtimes.errors import OutputError, missing_extra
from detr_export.runtimes.files import require_writable, user_path, write_atomically

_TYPES = {"bbox": ("", "boxes"), "segm": ("mask_", "masks")}  # what names of files begin with, and what they are about
_NAMES = ("confusion_matrix.png", "confusion_matrix.csv", "precision_recall.png", "precision_recall.csv", "thresholds.csv")


def require_plots_folder(folder: str | Path, overwrite: bool) -> None:
    """Refuses, before anything is scored, a folder that is not empty or cannot be written.

    Args:
        folder: may be missing.
        overwrite: take a folder that has files, too.

    Raises:
        OutputError: says what is in the way.
        BackendError: matplotlib, which draws the plots, is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "bench")
    target = user_path(folder)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is not a folder; give another name for the plots")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise OutputError(f"{target} is not empty; add --overwrite to replace the plots in it, or give another folder")
    for prefix, _ in _TYPES.values():
        for name in _NAMES:
            require_writable(target / (prefix + name), overwrite=True)


def write_plots(evaluator: CocoEvaluator, folder: str | Path, overwrite: bool = False) -> list[Path]:
    """Writes pictures and tables of the detections that an evaluator has; see the module for their names.

    Args:
        evaluator: with the detections of all images.
        folder: for the files; made if it is missing.
        overwrite: replace such files in a folder that is not empty. Other files in it stay.

    Returns:
        The files.

    Raises:
        OutputError: the folder is not empty or cannot be written.
        BackendError: matplotlib is not installed.
        AnnotationError: the segmentation of an annotation is malformed.
    """
    require_plots_folder(folder, overwrite)
    from detr_export.benchmarks.accuracy.drawing import draw_confusion, draw_curves
    from detr_export.benchmarks.plot_style import write_png

    target = user_path(folder)
    written = []
    for iou_type in evaluator.iou_types:
        prefix, what = _TYPES[iou_type]
        matrix, found = confusion_matrix(evaluator, iou_type), curves(evaluator, iou_type)
        for name, figure in (
            ("confusion_matrix", draw_confusion(matrix, what)),
            ("precision_recall", draw_curves(found, what)),
        ):
            written.append(write_png(figure, target / f"{prefix}{name}.png"))
        tables = {
            "confusion_matrix": _confusion_rows(matrix),
            "precision_recall": _curve_rows(found),
            "thresholds": _threshold_rows(found),
        }
        for name, rows in tables.items():
            written.append(write_atomically(target / f"{prefix}{name}.csv", _csv(rows)))

    # Files of an earlier model that drew masks would look like this model's.
    for stale in {target / (prefix + name) for prefix, _ in _TYPES.values() for name in _NAMES} - set(written):
        stale.unlink(missing_ok=True)
    return written


def _confusion_rows(matrix: ConfusionMatrix) -> Iterable[Sequence[Any]]:
    """A head of predicted classes, then a row for each annotated class; classes that do not occur are left out."""
    shown = matrix.occurring()
    yield ["annotated \\ predicted", *shown.labels]
    for label, counts in zip(shown.labels, shown.counts.tolist(), strict=True):
        yield [label, *counts]


def _curve_rows(found: Curves) -> Iterable[Sequence[Any]]:
    yield ["class", "recall", "precision at IoU .50", "precision at IoU .50:.95"]
    for item in _with_mean(found):
        for recall, at_50, mean in zip(RECALLS.tolist(), item.precision_50.tolist(), item.precision.tolist(), strict=True):
            yield [item.name, f"{recall:.2f}", at_50, mean]


def _threshold_rows(found: Curves) -> Iterable[Sequence[Any]]:
    yield ["class", "annotations", "threshold", "F1", "precision", "recall"]
    for item in _with_mean(found):
        best = item.best
        numbers = ("", 0.0, "", 0.0) if best is None else (best.threshold, best.f1, best.precision, best.recall)
        yield [item.name, item.annotations, *numbers]


def _with_mean(found: Curves) -> Iterable[ClassCurve]:
    return () if found.mean is None else (found.mean, *found.classes)


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
