"""The log of a training run: a CSV file with a row for every few steps, and a plot of it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from detr_export.runtimes.errors import missing_extra
from detr_export.runtimes.files import replacing, write_atomically, writing

LOG_NAME, PLOT_NAME = "training_log.csv", "training_log.png"
COLUMNS = (
    "stage",
    "epoch",
    "step",  # of the stage, counted from 1
    "learning_rate",
    "gradient_norm",  # before clipping
    "images_per_second",
    "loss",
    "loss_ce",
    "loss_bbox",
    "loss_giou",
    "loss_mask",
    "loss_dice",
    "cardinality_error",
)
_POSITION = ("stage", "epoch", "step", "learning_rate")
_PLOTTED = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


class TrainingLog:
    """Rows in memory, written as a whole: a run that is resumed replaces the rows after its last state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0

    def resume(self, stage: str, step: int) -> None:
        """Reads the rows up to `step` of `stage`."""
        try:
            rows = list(csv.DictReader(io.StringIO((self.folder / LOG_NAME).read_text(encoding="utf-8"))))
        except OSError:
            return
        before = [index for index, row in enumerate(rows) if row["stage"] != stage or int(row["step"]) <= step]
        self.rows = rows[: before[-1] + 1] if before else []

    def add(self, values: Mapping[str, float]) -> None:
        """Counts one step towards the next row."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] += value

    def mean(self, name: str) -> float:
        """The mean over the steps since the last row."""
        return self._sums[name] / max(self._count, 1)

    def end_row(self, position: Mapping[str, float | str]) -> None:
        """Makes a row of the means since the last one, and the stage, epoch, step and learning rate that they end at."""
        row = dict.fromkeys(COLUMNS, "")
        row.update({name: str(position[name]) for name in _POSITION})
        row.update({name: f"{self.mean(name):.6g}" for name in COLUMNS if name in self._sums})
        self.rows.append(row)
        self._sums.clear()
        self._count = 0

    def write(self) -> Path:
        """Writes the CSV file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return write_atomically(self.folder / LOG_NAME, text.getvalue().encode())

    def plot(self) -> Path:
        """Draws the losses over the steps, a panel for each stage.

        Raises:
            BackendError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise missing_extra("matplotlib", "train") from None
        stages = list(dict.fromkeys(row["stage"] for row in self.rows)) or ["detector"]
        figure = Figure(figsize=(6 * len(stages), 4), layout="constrained")
        for number, stage in enumerate(stages, start=1):
            axes = figure.add_subplot(1, len(stages), number)
            rows = [row for row in self.rows if row["stage"] == stage]
            steps = [int(row["step"]) for row in rows]
            for name in _PLOTTED:
                if any(row[name] for row in rows):
                    axes.plot(steps, [float(row[name] or "nan") for row in rows], label=name, linewidth=1)
            axes.set(title=f"stage: {stage}", xlabel="step", ylabel="loss, unweighted terms and weighted sum", yscale="log")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        path = self.folder / PLOT_NAME
        with replacing(path) as temporary, writing(path):
            figure.savefig(temporary, dpi=120)
        return path
