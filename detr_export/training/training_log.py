"""The logs of a training run: a CSV file with a row for every few steps, and one with a row for every validation."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import CheckpointError, first_line
from detr_export.runtimes.files import require_regular, write_atomically
from detr_export.runtimes.limits import require_at_most

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
        """Reads the rows up to `step` of `stage`.

        Raises:
            CheckpointError: the file is damaged; the message names the row and the field.
        """
        if not os.path.lexists(self.file):
            return
        require_regular(self.file, CheckpointError)
        size = self.file.stat().st_size
        require_at_most("document_bytes", size, f"the size of {self.file} in bytes", CheckpointError)
        try:
            text = self.file.read_text(encoding="utf-8")
            rows: list[Row] = list(csv.DictReader(io.StringIO(text)))
        except (OSError, ValueError, csv.Error) as error:  # ValueError: it is not UTF-8
            raise CheckpointError(f"{self.file} is not a table ({first_line(error)}); remove it to go on") from error
        for number, row in enumerate(rows, 1):
            where = f"{self.file}: row {number}"
            if not {"stage", "step"} <= set(row) <= set(self.columns) or None in row.values():
                raise CheckpointError(f"{where} has other columns than {', '.join(self.columns)}; remove the file to go on")
            step_of_row = row["step"]
            if not (step_of_row.isascii() and step_of_row.isdigit() and len(step_of_row) < 19):
                raise CheckpointError(
                    f"{where}: step is {shown(step_of_row)}; expected an integer; remove the file to go on"
                )
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
