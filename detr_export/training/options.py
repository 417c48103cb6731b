"""The options of a training run, and the stages that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detr_export.runtimes.errors import InputError

TASKS = ("detection", "panoptic")


# What a run that goes on may have other than the run that it goes on from.
CHANGEABLE = frozenset({"epochs", "mask_epochs", "patience", "validate_every", "validation_images"})


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe. Defaults are those of the paper (appendix A.4), for a batch of any size."""

    task: str = "detection"  # or "panoptic": boxes of things and stuff, then their masks
    epochs: int = 300  # of the detector, or of all with `jointly`
    mask_epochs: int = 25  # panoptic only: of the mask head, while the detector stays as it is
    jointly: bool = False  # panoptic only: train detector and mask head in one stage of `epochs`
    batch_size: int = 2  # images of one process
    accumulate: int = 1  # batches of a step, whose gradients are averaged
    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    clip: float = 0.1  # largest norm of the gradient
    drop: float = 2 / 3  # share of a stage after which the learning rates fall to a tenth
    warmup: int | None = 0  # first steps of a stage, in which the rates rise from zero; None: a twentieth, at most 500
    flip: float = 0.5  # probability of a horizontal flip
    scale: tuple[float, float] = (0.6, 1.0)  # range of the shortest edge, relative to the processor's
    crop: float = 0.5  # probability of a random crop
    color_jitter: float = 0.0  # largest relative change of brightness, contrast and saturation
    train_batch_norm: bool | None = None  # None: when the backbone starts from scratch
    freeze_backbone: bool = False  # keep the backbone as it is
    ema: float = 0.0  # decay of an exponential moving average of the weights, which is what is written; 0 for none
    mixed_precision: bool = False  # compute in bfloat16, or in float16 on a GPU without it; CUDA only
    patience: int | None = None  # a stage ends after so many validations without a better score
    validate_every: int = 1  # epochs
    validation_images: int | None = None  # of the split val; all when None
    seed: int = 0
    fp16_weights: bool = False  # store matrices and kernels as float16

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}")
        least = {"epochs": 0, "mask_epochs": 0, "batch_size": 1, "accumulate": 1, "warmup": 0, "seed": 0, "patience": 1}
        for name, smallest in (*least.items(), ("validate_every", 1), ("validation_images", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"{name} is {value}; expected at least {smallest}")
        for name in ("learning_rate", "backbone_learning_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0")
        for name in ("drop", "flip", "crop", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema}; expected a number from 0 to below 1, such as 0.9997")
        if not 0 < self.scale[0] <= self.scale[1] <= 4:
            raise InputError(f"scale is {self.scale}; expected two numbers from above 0 to 4, the lower one first")
        if self.freeze_backbone and self.train_batch_norm:
            raise InputError("freeze_backbone and train_batch_norm exclude each other; leave one of them out")
        if not self.stages:
            raise InputError("there are no epochs to train")

    @classmethod
    def fine_tuning(cls, **given: Any) -> TrainingOptions:
        """Defaults for a checkpoint that knows pictures already: 50 epochs with a warm-up, and a drop near their end.

        Args:
            **given: fields that are to be other than that.
        """
        return cls(**{"epochs": 50, "warmup": None, "drop": 0.8, **given})

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TrainingOptions:
        """The options that `to_dict` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**values)

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
