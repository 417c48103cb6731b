"""What a run tells while it goes on: lines for people, rows of its logs, the plot, pictures, events for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from detr_export.runtimes.files import replacing, writing
from detr_export.runtimes.progress import Progress
from detr_export.training.options import Stage
from detr_export.training.plotting import PLOT_NAME, plot_run
from detr_export.training.state import Best
from detr_export.training.tensorboard import Board
from detr_export.training.training_log import (
    LOSSES,
    VALIDATION_COLUMNS,
    VALIDATION_LOG_NAME,
    Row,
    Table,
    TrainingLog,
)
from detr_export.training.validation import Validated

PICTURES_FOLDER = "predictions"
_STEPS_OF_A_ROW = 10  # of the log, at most


class RunRecord:
    """The record of a run.

    Args:
        folder: of the run.
        progress: told of the run.
        board: of TensorBoard.
    """

    def __init__(self, folder: Path, progress: Progress, board: Board) -> None:
        self._folder, self._progress, self._board = folder, progress, board
        self._log = TrainingLog(folder)
        self._validations = Table(folder / VALIDATION_LOG_NAME, VALIDATION_COLUMNS)

    def resume(self, stage: str, step: int) -> None:
        """Reads the rows of the logs up to a step."""
        for table in (self._log, self._validations):
            table.resume(stage, step)

    def step(
        self, stage: Stage, step: int, per_epoch: int, values: Mapping[str, float], learning_rate: float, left: str
    ) -> None:
        """Tells of a step, and makes a row of the log where one is due.

        Args:
            stage: that the step is in.
            step: counted from 0.
            per_epoch: how many steps an epoch has.
            values: by the columns of the log.
            learning_rate: of the step.
            left: how long the stage still takes, for people.
        """
        self._log.count(values)
        losses = " ".join(f"{name} {self._log.mean(name):.3f}" for name in LOSSES if name in values)
        epoch, position = divmod(step, per_epoch)
        epoch, position = epoch + 1, position + 1
        steps = stage.epochs * per_epoch
        self._progress.step(step + 1, steps, f"{stage.name}, epoch {epoch}/{stage.epochs}: {losses}")
        if position == per_epoch:
            self._progress.stage(
                f"{stage.name}: epoch {epoch} of {stage.epochs}, step {step + 1} of {steps}: {losses}{left}"
            )
        # The rows of an epoch have the same number of steps each, or one less: their plain mean is about that of the epoch.
        rows = -(-per_epoch // _STEPS_OF_A_ROW)
        if position * rows // per_epoch > (position - 1) * rows // per_epoch:
            place = {
                "stage": stage.name,
                "epoch": str(epoch),
                "step": str(step + 1),
                "learning_rate": f"{learning_rate:.3g}",
            }
            self._board.row("training", self._log.end_row(place))

    def validation(self, found: Validated, stage: Stage, epoch: int, step: int, best: Best) -> None:
        """Tells of a validation.

        Args:
            found: what came of it.
            stage, epoch, step: where the run is, counted from 1.
            best: the best validation of the stage, this one included.
        """
        is_best = best.epoch == epoch
        place = {"stage": stage.name, "epoch": str(epoch), "step": str(step), "best": "1" if is_best else ""}
        self._validations.add({**found.losses, **found.scores, **place})
        self._board.row("validation", self._validations.rows[-1])
        self._board.picture(place, found.picture)
        file = self._folder / PICTURES_FOLDER / f"{stage.name}_{epoch:03}.png"
        with replacing(file) as temporary, writing(file):
            found.picture.save(temporary)
        name = found.decisive[0].replace("_", " ")
        told = f"the best {name} so far" if is_best else f"the best was epoch {best.epoch}"
        self._progress.stage(f"{stage.name}: validation after epoch {epoch}: {found.summary()}; {told}")

    def write(self) -> None:
        """Writes the logs and their plot.

        Raises:
            OutputError: a file cannot be written.
        """
        self._log.write()
        if self._validations.rows:
            self._validations.write()
        plot_run(self._folder / PLOT_NAME, self._log.rows, self._validations.rows)

    @property
    def last(self) -> Row:
        """The last row of the training log; empty if there is none."""
        return self._log.rows[-1] if self._log.rows else {}

    @property
    def best(self) -> Row | None:
        """The last row of the validation log that was the best of its stage; None if there is none."""
        return next((row for row in reversed(self._validations.rows) if row["best"]), None)


class Clock:
    """Seconds of steps, and what is left at their mean."""

    def __init__(self) -> None:
        self._mark = self._start = time.monotonic()
        self._steps = 0

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        seconds, self._mark = max(now - self._mark, 1e-9), now
        return seconds

    def left(self, steps: int) -> str:
        """For people: how long so many steps take, validations included. It counts a step."""
        self._steps += 1
        seconds = round((self._mark - self._start) / self._steps * steps)
        if seconds < 1:
            return ""
        return f", {seconds} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
