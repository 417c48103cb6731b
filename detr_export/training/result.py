"""What a finished training run says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.training.validation import SCORES


@dataclass(frozen=True)
class Training:
    """What a finished run says of itself."""

    directory: Path  # the checkpoint
    steps: int  # of all stages
    last: Mapping[str, str]  # the last row of the log
    left_out: Mapping[str, int]  # bad "images" and "annotations" of the data that were not trained on
    best: Mapping[str, str] | None = None  # the row of the validation log whose checkpoint it is; None without validation

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "directory": str(self.directory),
            "steps": self.steps,
            "last": dict(self.last),
            "best": None if self.best is None else dict(self.best),
            "left_out": dict(self.left_out),
        }

    def summary(self) -> str:
        """For people, on one line."""
        text = f"{self.directory}  {self.steps} steps, loss {self.last.get('loss', '-')}"
        if self.best is None:
            return text
        name = next(name for name in SCORES if self.best[name])
        return f"{text}; best: {self.best['stage']} epoch {self.best['epoch']}, {name.replace('_', ' ')} {self.best[name]}"
