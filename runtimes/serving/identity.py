"""`Identity`: which model a server has, as `/health` and the front page say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.predictor import Predictor


@dataclass(frozen=True)
class Identity:
    """What a client may know about the model."""

    model: str  # name of the file or checkpoint, without its folder
    task: str  # of the model: "detection" or "segmentation"
    tasks: tuple[str, ...]  # what a request may ask for, the default first
    device: str
    version: str  # of detr-export

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "tasks": list(self.tasks)}


def identify(predictor: Predictor, model: str, device: str, version: str) -> Identity:
    """Names a model that was opened under the name `model` on `device`, and the version of detr-export."""
    return Identity(PurePath(model).name, predictor.metadata.task, predictor.tasks, str(parse_device(device)), version)
