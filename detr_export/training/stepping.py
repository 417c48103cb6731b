"""One stage's steps: losses, gradients, the optimiser, the moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from contextlib import nullcontext

import torch
from torch import nn

from detr_export.modeling.detr import DetrWithHeads
from detr_export.runtimes.errors import InputError
from detr_export.training.averaging import Average
from detr_export.training.dataset import Batch
from detr_export.training.optimization import Schedule, make_optimizer, stage_objective
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.precision import Precision
from detr_export.training.processes import Processes, mean_over_processes
from detr_export.training.state import State


class Stepper:
    """Makes the steps of a stage.

    Args:
        model: the model; its parameters are frozen or trained as the stage wants it.
        trainable: names of the parameters that may be trained at all.
        stage: the stage.
        steps: how many the stage has.
        options: the recipe.
        processes: that share the run.
    """

    def __init__(
        self,
        model: DetrWithHeads,
        trainable: Set[str],
        stage: Stage,
        steps: int,
        options: TrainingOptions,
        processes: Processes,
    ) -> None:
        self._model, self._options, self._processes = model, options, processes
        self.precision = Precision(processes.device, options.mixed_precision)
        self._objective = stage_objective(model, trainable, stage, processes)
        self.optimizer = make_optimizer(model, options)
        self.average = Average(model, options.ema) if options.ema else None
        self._schedule = Schedule(options, steps)

    @property
    def deployable(self) -> nn.Module:
        """The model whose weights are to be written: the average, if there is one."""
        return self._model if self.average is None else self.average.module

    def resume(self, state: State) -> None:
        """Takes over optimiser, average and scale of the gradients."""
        if state.optimizer is None:
            return
        self.optimizer.load_state_dict(state.optimizer)
        self.precision.load_state_dict(state.precision)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)

    def learning_rate(self, step: int) -> float:
        """Of all but the backbone, at a step counted from 0."""
        return self._options.learning_rate * self._schedule.factor(step)

    def step(self, step: int, parts: Sequence[Batch]) -> dict[str, float]:
        """Makes one step; returns the loss, its terms and the norm of the gradient before clipping.

        Args:
            step: counted from 0.
            parts: batches, whose losses are averaged.

        Raises:
            InputError: the loss is not a number any more.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._schedule.factor(step)
        self.optimizer.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(parts):
            # Under torchrun the gradients of all parts are averaged at once, with those of the last one.
            is_last = index + 1 == len(parts)
            distributed = isinstance(self._objective, nn.parallel.DistributedDataParallel)
            with nullcontext() if is_last or not distributed else self._objective.no_sync():  # type: ignore[operator]
                with self.precision.autocast():
                    loss, terms = self._objective(batch.to(self._processes.device))
                self.precision.backward(loss / len(parts))
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(parts)
        values = mean_over_processes(sums)
        if not math.isfinite(values["loss"]):
            raise InputError(f"the loss of step {step + 1} is {values['loss']}; give a lower --learning-rate")
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        norm = self.precision.apply(self.optimizer, parameters, self._options.clip or math.inf)
        if self.average is not None:
            self.average.update(self._model)
        return {**values, "gradient_norm": norm}
