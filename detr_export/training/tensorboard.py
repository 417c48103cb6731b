"""The losses and scores of a run for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import missing_extra
from detr_export.runtimes.files import writing
from detr_export.training.training_log import Row

FOLDER = "tensorboard"
_NO_SCALARS = ("stage", "epoch", "step", "best")


class Board:
    """Writes events into a folder of the run; a context manager.

    Args:
        folder: of the run; None writes nothing.

    Raises:
        BackendError: tensorboard is not installed.
        OutputError: also of the methods, at once or at a later call: the events cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer, self._folder = None, folder
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise missing_extra("tensorboard", "tensorboard") from None
            with self._writing():
                self._writer = SummaryWriter(str(folder / FOLDER))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            # It raises once more what made a write fail.
            with self._writing() if error is None else contextlib.suppress(OSError):
                self._writer.close()

    def row(self, split: str, row: Row) -> None:
        """Adds a row of a log, under `stage/split/column` at its step."""
        if self._writer is None:
            return
        for name, value in row.items():
            if value and name not in _NO_SCALARS:
                tag = f"{row['stage']}/{split}/{name}"
                with self._writing():
                    self._writer.add_scalar(tag, float(value), int(row["step"]))

    def picture(self, position: Mapping[str, str], picture: Image.Image) -> None:
        """Adds a picture at the step of a row."""
        if self._writer is not None:
            name = f"{position['stage']}/predictions"
            pixels = np.asarray(picture)
            with self._writing():
                self._writer.add_image(name, pixels, int(position["step"]), dataformats="HWC")

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        assert self._folder is not None
        return writing(self._folder / FOLDER)
