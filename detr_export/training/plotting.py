"""The plot of a training run: its losses, and below them its scores on the validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_export.runtimes.errors import missing_extra
from detr_export.runtimes.files import replacing, writing
from detr_export.training.training_log import LOSSES, SCORES, Row

PLOT_NAME = "training_log.png"


def plot_run(file: Path, training: Sequence[Row], validation: Sequence[Row]) -> Path:
    """Draws a column of panels for each stage.

    Args:
        file: the picture to write.
        training, validation: rows of the two logs.

    Raises:
        BackendError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise missing_extra("matplotlib", "train") from None
    stages = list(dict.fromkeys(row["stage"] for row in training)) or ["detector"]
    panels = 2 if validation else 1
    figure = Figure(figsize=(6 * len(stages), 4 * panels), layout="constrained")
    for number, stage in enumerate(stages, start=1):
        losses = figure.add_subplot(panels, len(stages), number)
        own = [[row for row in rows if row["stage"] == stage] for rows in (training, validation)]
        _draw_losses(losses, *own)
        losses.set(title=f"stage: {stage}", xlabel="step", ylabel="loss, unweighted terms and weighted sum", yscale="log")
        if validation:
            scores = figure.add_subplot(panels, len(stages), len(stages) + number)
            _draw_scores(scores, own[1])
            scores.xaxis.set_major_locator(MaxNLocator(integer=True))
            scores.set(xlabel="epoch", ylabel="score on the validation pictures", ylim=(0, 1))
    with replacing(file) as temporary, writing(file):
        figure.savefig(temporary, dpi=120)
    return file


def _draw_losses(axes: Any, training: Sequence[Row], validation: Sequence[Row]) -> None:
    for number, name in enumerate(LOSSES):
        color = f"C{number}"
        if any(row[name] for row in training):
            axes.plot(*_curve(training, "step", name), label=name, linewidth=1, color=color)
        if any(row[name] for row in validation):
            label = f"{name}, validation"
            axes.plot(*_curve(validation, "step", name), label=label, color=color, linewidth=1, linestyle="--", marker=".")
    _finish(axes)


def _draw_scores(axes: Any, validation: Sequence[Row]) -> None:
    for number, name in enumerate(SCORES):
        if any(row[name] for row in validation):
            label = name.replace("_", " ")
            axes.plot(*_curve(validation, "epoch", name), label=label, color=f"C{number}", linewidth=1, marker=".")
    best = [row for row in validation if row["best"]]
    if best:
        axes.axvline(int(best[-1]["epoch"]), color="0.5", linewidth=1, linestyle=":", label="best")
    _finish(axes)


def _curve(rows: Sequence[Row], across: str, name: str) -> tuple[list[int], list[float]]:
    return [int(row[across]) for row in rows], [float(row[name] or "nan") for row in rows]


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="x-small", ncols=2, framealpha=0.7)
