"""What `detr-export predict` prints while it runs and when it has ended."""

from __future__ import annotations

import time
from typing import Any, Optional

import typer

from detr_export.runtimes.file_batches import FilePrediction
from detr_export.runtimes.totals import Totals
from detr_export.terminal import TerminalProgress, print_json

FEW = 10  # pictures that get a line each; more get a bar and totals


class PredictionReport:
    """Reports pictures as they come: a line each if they are few, else a bar, and totals at the end.

    Use it as a context manager: leaving it removes the bar, and prints the totals unless there was an exception.

    Args:
        pictures: how many there will be.
        as_json: whether to print one JSON document at the end, and no text.
    """

    def __init__(self, pictures: int, as_json: bool) -> None:
        self.totals = Totals()
        self._pictures = pictures
        self._documents: Optional[list[dict[str, Any]]] = [] if as_json else None
        self._progress = TerminalProgress("predicting")
        self._begin = time.perf_counter()

    def __enter__(self) -> PredictionReport:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: object) -> None:
        self._progress.__exit__()
        if kind is not None:
            return
        if self._documents is not None:
            print_json(self._documents)
        elif self._pictures > FEW:
            typer.echo(self.totals.summary(time.perf_counter() - self._begin))

    def add(self, outcome: FilePrediction) -> None:
        """Reports one picture. An error goes to stderr."""
        self.totals.add(outcome)
        if self._documents is not None:
            self._documents.append(outcome.to_dict())
        if outcome.error is not None:
            self._progress.error(outcome.error)
        elif self._documents is None and self._pictures <= FEW:
            typer.echo(outcome.summary())
        if self._pictures > FEW:
            self._progress.step(self.totals.pictures, self._pictures)
