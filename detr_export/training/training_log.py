"""The logs of a training run: a CSV file with a row for every few steps, and one with a row for every validation."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from detr_export.runtimes.files import write_atomically

LOG_NAME, VALIDATION_LOG_NAME = "training_log.csv", "validation_log.csv"
LOSSES = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
COLUMNS = (
    "stage",
    "epoch",
    "step",  # of the stage, counted from 1
    "learning_rate",
    "gradient_norm",  # before clipping
    "images_per_second",
    *LOSSES,
    "cardinality_error",
)
SCORES = ("box_AP", "box_AP50", "mask_AP", "PQ")
VALIDATION_COLUMNS = ("stage", "epoch", "step", *LOSSES, *SCORES, "best")
Row = Mapping[str, str]


class Table:
    """Rows in memory, written as a whole: a run that is resumed replaces the rows after its last state."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        self.file, self.columns = file, columns
        self.rows: list[Row] = []

    def resume(self, stage: str, step: int) -> None:
        """Reads the rows up to `step` of `stage`."""
        try:
            rows: list[Row] = list(csv.DictReader(io.StringIO(self.file.read_text(encoding="utf-8"))))
        except OSError:
            return
        before = [index for index, row in enumerate(rows) if row["stage"] != stage or int(row["step"]) <= step]
        self.rows = rows[: before[-1] + 1] if before else []

    def add(self, row: Mapping[str, str | float]) -> None:
        """Adds a row; columns that it lacks are empty, and what is in no column is left out."""
        texts = {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in row.items()}
        self.rows.append({name: texts.get(name, "") for name in self.columns})

    def write(self) -> Path:
        """Writes the CSV file.

        Raises:
            OutputError: it cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return write_atomically(self.file, text.getvalue().encode())


class TrainingLog(Table):
    """A table whose rows are means over a few steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOG_NAME, COLUMNS)
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0

    def count(self, values: Mapping[str, float]) -> None:
        """Counts one step towards the next row."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] += value

    def mean(self, name: str) -> float:
        """The mean over the steps since the last row."""
        return self._sums[name] / max(self._count, 1)

    def end_row(self, position: Row) -> Row:
        """Makes a row of the means since the last one, and the stage, epoch, step and learning rate that they end at."""
        means = {name: self.mean(name) for name in COLUMNS if name in self._sums}
        self.add({**position, **means})
        self._sums.clear()
        self._count = 0
        return self.rows[-1]
