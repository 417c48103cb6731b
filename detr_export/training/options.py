"""The options of a training run, and the stages that follow from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from detr_export.runtimes.errors import InputError

TASKS = ("detection", "panoptic")


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe. Defaults are those of the paper (appendix A.4), for a batch of any size."""

    task: str = "detection"  # or "panoptic": boxes of things and stuff, then their masks
    epochs: int = 300  # of the detector, or of all with `jointly`
    mask_epochs: int = 25  # panoptic only: of the mask head, while the detector stays as it is
    jointly: bool = False  # panoptic only: train detector and mask head in one stage of `epochs`
    batch_size: int = 2  # images of one process
    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    clip: float = 0.1  # largest norm of the gradient
    drop: float = 2 / 3  # share of a stage after which the learning rates fall to a tenth
    warmup: int = 0  # first steps of a stage, in which the learning rates rise from zero
    flip: float = 0.5  # probability of a horizontal flip
    scale: tuple[float, float] = (0.6, 1.0)  # range of the shortest edge, relative to the processor's
    train_batch_norm: bool | None = None  # None: when the backbone starts from scratch
    seed: int = 0
    fp16_weights: bool = False  # store matrices and kernels as float16

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}")
        for name, least in (("epochs", 0), ("mask_epochs", 0), ("batch_size", 1), ("warmup", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("learning_rate", "backbone_learning_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0")
        for name in ("drop", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 4:
            raise InputError(f"scale is {self.scale}; expected two numbers from above 0 to 4, the lower one first")
        if not self.stages:
            raise InputError("there are no epochs to train")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained, in order."""
        panoptic = self.task == "panoptic"
        first = Stage("all" if panoptic and self.jointly else "detector", self.epochs)
        second = Stage("masks", self.mask_epochs if panoptic and not self.jointly else 0)
        return tuple(stage for stage in (first, second) if stage.epochs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Stage:
    """Epochs over which the same parameters are trained."""

    name: str  # "detector", "masks", or "all"
    epochs: int
