"""What a stage trains, and how fast: parameters, objective, optimiser and learning rates."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import nn

from detr_export.modeling.detr import DetrWithHeads
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.training.objective import DetectorObjective, MaskObjective
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.processes import Processes

_DROP_TO = 0.1  # factor on the learning rates after the drop
_WARMUP_SHARE, _LONGEST_WARMUP = 20, 500  # one step of so many, and at most so many steps, if the recipe does not say


def stage_objective(model: DetrWithHeads, trainable: Set[str], stage: Stage, processes: Processes) -> nn.Module:
    """Freezes what a stage does not train, and returns its objective, wrapped for a distributed run where there is one.

    Args:
        model: the model; its parameters and modes are set.
        trainable: names of the parameters that may be trained at all.
        stage: the stage.
        processes: that share the run.
    """
    masks_only = stage.name == "masks"
    for name, parameter in model.named_parameters():
        of_masks = not name.startswith("detr.") and isinstance(model, DetrForSegmentation)
        trained = {"detector": not of_masks, "masks": of_masks, "all": True}[stage.name]
        parameter.requires_grad_(trained and name in trainable)
    model.train()
    if masks_only:
        model.detector.eval()  # no dropout, and no new statistics: the masks are drawn on what will be deployed
    objective: nn.Module
    if stage.name == "detector":
        objective = DetectorObjective(model)
    else:
        assert isinstance(model, DetrForSegmentation)
        objective = MaskObjective(model, with_detector=not masks_only)
    if processes.count == 1:
        return objective
    gpus = [processes.device.index] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(objective, device_ids=gpus)


def make_optimizer(model: DetrWithHeads, options: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained; each group has its full learning rate in `initial_lr`."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    backbone = [parameter for name, parameter in named if "conv_encoder" in name]
    rest = [parameter for name, parameter in named if "conv_encoder" not in name]
    groups: list[dict[str, Any]] = [{"params": rest, "initial_lr": options.learning_rate}]
    if backbone:
        groups.append({"params": backbone, "initial_lr": options.backbone_learning_rate})
    return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)


class Schedule:
    """The factor on the learning rates: a linear rise over the warm-up, 1, and 0.1 after the drop."""

    def __init__(self, options: TrainingOptions, steps: int) -> None:
        self.warmup = min(steps // _WARMUP_SHARE, _LONGEST_WARMUP) if options.warmup is None else options.warmup
        self.drop = round(options.drop * steps)

    def factor(self, step: int) -> float:
        """For a step counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * (1.0 if step < self.drop else _DROP_TO)
