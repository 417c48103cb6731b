"""The training loop: DETR's recipe (paper, appendix A.4) in stages, resumable to the same weights.

Batches, augmentation and dropout of a step depend on the seed and the step alone. The state is written at the end of each
epoch and on Ctrl-C; a run that goes on from it ends in the weights that the uninterrupted run would have ended in, on the
same machine and with the same number of processes.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from detr_export.checkpoints.reading import Checkpoint, load_strictly
from detr_export.data.splits import CocoSplit, read_split
from detr_export.modeling.detr import DetrWithHeads
from detr_export.runtimes.errors import DetrError, InputError, OutputError
from detr_export.runtimes.files import require_writable, write_atomically
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.training.dataset import Augmentation, Batch, CocoDataset, ShuffledBatches, collate
from detr_export.training.interruption import held_interrupts, ignore_interrupts
from detr_export.training.optimization import Schedule, make_optimizer, stage_objective
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.processes import Processes, joined, mean_over_processes
from detr_export.training.starting_point import StartingPoint, starting_point
from detr_export.training.state import STATE_NAME, State, read_state, write_state
from detr_export.training.training_log import TrainingLog

RECIPE_NAME = "recipe.json"
_STEPS_OF_A_ROW = 10  # of the log, at most
_SHOWN = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


@dataclass(frozen=True)
class Training:
    """What a finished run says of itself."""

    directory: Path  # the checkpoint
    steps: int  # of all stages
    last: Mapping[str, str]  # the last row of the log
    left_out: Mapping[str, int]  # bad "images" and "annotations" of the data that were not trained on

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "directory": str(self.directory),
            "steps": self.steps,
            "last": dict(self.last),
            "left_out": dict(self.left_out),
        }


def train(
    data: str | Path | CocoSplit,
    output: str | Path,
    options: TrainingOptions,
    config: str | Path | None = None,
    checkpoint: Checkpoint | None = None,
    device: str = "cpu",
    workers: int = 2,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Training | None:
    """Trains a DETR on the `train` split of a COCO folder and writes the checkpoint.

    Args:
        data: the folder, see `data.layouts`, or what `read_split` made of it. All of it is checked before the first step.
        output: folder of the checkpoint, the log, and while the run lasts its state.
        options: the recipe.
        config, checkpoint: what to start from, see `starting_point`.
        device: `cpu`, `cuda` or `cuda:N`. Under torchrun all its processes train together.
        workers: processes that prepare batches; 0 prepares them in this one.
        resume: go on from the state that an interrupted run left in `output`.
        overwrite: begin anew in a folder that holds a checkpoint or a state.
        progress: is told what goes on, and after each step how far the stage is.

    Returns:
        What came of it; None in all but the first process of a torchrun.

    Raises:
        DatasetError: images or annotations are bad; `read_split` with `skip_bad` leaves them out.
        AnnotationError, ImageError: the data is not usable.
        CheckpointError, InputError: what to start from or an option is not usable, or a loss is not a number any more.
        OutputError: `output` holds something else, or cannot be written.
        BackendError: the device or an extra is missing.
        KeyboardInterrupt: on Ctrl-C, after the step in progress and with the state written.
    """
    with joined(device) as processes:
        told = progress if processes.is_first else SILENT
        split = data if isinstance(data, CocoSplit) else read_split(data, "train", options.task, progress=told)
        if split.task != options.task:
            raise InputError(
                f"the data was read for the task {split.task}, and task is {options.task}; read it for that one"
            )
        start = starting_point(split, options, config, checkpoint)
        run = _Run(Path(output), options, start, processes, len(split), told)
        run.begin(resume, overwrite)
        notes = [f"{len(split)} images, {len(split.categories)} classes"]
        if split.bad_images or split.bad_annotations:
            notes.append(f"left out as bad: {split.bad_images} images, {split.bad_annotations} annotations")
        for note in (*notes, *start.notes):
            run.progress.stage(note)
        for number, stage in enumerate(options.stages):
            with_masks = stage.name != "detector" and options.task == "panoptic"
            augmentation = Augmentation(options.flip, options.scale)
            # Each stage sees the images in other variations and another order.
            dataset = CocoDataset(split, start.processor, with_masks, augmentation, options.seed + number)
            run.train_stage(number, stage, dataset, workers)
        return run.finish(split)


class _Run:
    """One run in one process.

    Args:
        folder: of the checkpoint.
        options: the recipe.
        start: the model to train.
        processes: that share the run.
        images: how many the data has.
        progress: told of the run.
    """

    def __init__(
        self,
        folder: Path,
        options: TrainingOptions,
        start: StartingPoint,
        processes: Processes,
        images: int,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.options = options
        # Channels last: a fifth faster on the CPU, and the layout for tensor cores.
        self.model = start.model.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if processes.count > 1 and processes.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.processor = start.processor
        self.processes = processes
        self.progress = progress
        self.log = TrainingLog(folder)
        self.trainable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        # What a run that goes on from this one's state must share with it.
        self.identity = {
            **options.to_dict(),
            "config": json.dumps(self.model.config.to_dict(), sort_keys=True),
            "images": images,
            "processes": processes.count,
        }
        self.origin = State(0, 0, {}, None)  # where the run begins, or goes on
        self.steps = 0  # of all stages so far

    def begin(self, resume: bool, overwrite: bool) -> None:
        """Reads the state to go on from, or makes sure that there is none."""
        state_file = self.folder / STATE_NAME
        require_writable(state_file, overwrite=True)
        if resume:
            self.origin = read_state(state_file, self.identity)
            self.model.load_state_dict(self.origin.model)
            if self.origin.stage < len(self.options.stages):
                self.log.resume(self.options.stages[self.origin.stage].name, self.origin.step)
        elif not overwrite:
            for file in (state_file, self.folder / "model.safetensors"):
                if file.exists():
                    remedy = "--resume to go on, or " if file == state_file else ""
                    raise OutputError(f"{file} exists; add {remedy}--overwrite to begin anew")

    # ---- one stage ------------------------------------------------------------------------------------------------------

    def train_stage(self, number: int, stage: Stage, dataset: CocoDataset, workers: int) -> None:
        """Trains what is left of a stage."""
        options, processes = self.options, self.processes
        # How many steps the stage has, and which of them are left.
        batches = ShuffledBatches(len(dataset), options.batch_size, dataset.seed, range(0), processes.rank, processes.count)
        per_epoch = batches.steps_per_epoch
        if per_epoch == 0:
            raise InputError(
                f"{len(dataset)} images do not fill a batch of {options.batch_size} in {processes.count} processes; "
                "give a smaller --batch"
            )
        steps = stage.epochs * per_epoch
        self.steps += steps
        if number < self.origin.stage:
            return
        goes_on = number == self.origin.stage
        batches.steps = range(self.origin.step if goes_on else 0, steps)

        # What is trained, and with what.
        objective = stage_objective(self.model, self.trainable, stage, processes)
        optimizer = make_optimizer(self.model, options)
        if goes_on and self.origin.optimizer is not None:
            optimizer.load_state_dict(self.origin.optimizer)
        schedule = Schedule(options, steps)
        loader = self._loader(dataset, batches, workers)

        # The steps. Ctrl-C waits for the end of one.
        with held_interrupts() as interrupted:
            clock = time.monotonic()
            for step, batch in zip(batches.steps, loader, strict=True):
                if isinstance(batch, DetrError):
                    raise batch
                torch.manual_seed(options.seed + 1_000_003 * (step * processes.count + processes.rank) + number)
                factor = schedule.factor(step)
                values = self._step(step, batch, objective, optimizer, factor)
                now = time.monotonic()
                speed = options.batch_size * processes.count / max(now - clock, 1e-9)
                clock = now
                self._note(stage, step, per_epoch, steps, values, speed, factor)
                if (step + 1) % per_epoch == 0 and step + 1 < steps:
                    self._write_state(number, step + 1, optimizer)
                if interrupted:
                    self._write_state(number, step + 1, optimizer)
                    self.progress.stage(
                        f"interrupted after step {step + 1} of {steps} ({stage.name}); add --resume to go on"
                    )
                    raise KeyboardInterrupt
        self._write_state(number + 1, 0, None)

    def _loader(self, dataset: CocoDataset, batches: ShuffledBatches, workers: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=_begin_worker,
            pin_memory=self.processes.device.type == "cuda",
        )

    def _step(
        self, step: int, batch: Batch, objective: nn.Module, optimizer: torch.optim.Optimizer, factor: float
    ) -> dict[str, float]:
        """Makes one step; returns the loss, its terms and the norm of the gradient before clipping."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        loss, terms = objective(batch.to(self.processes.device))
        values = mean_over_processes({"loss": loss, **terms})
        if not math.isfinite(values["loss"]):
            raise InputError(f"the loss of step {step + 1} is {values['loss']}; give a lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(parameters, self.options.clip or math.inf)
        optimizer.step()
        return {**values, "gradient_norm": float(norm)}

    def _note(
        self,
        stage: Stage,
        step: int,
        per_epoch: int,
        steps: int,
        values: Mapping[str, float],
        speed: float,
        factor: float,
    ) -> None:
        """Tells of a step, and makes a row of the log where one is due."""
        self.log.add({**values, "images_per_second": speed})
        losses = " ".join(f"{name} {self.log.mean(name):.3f}" for name in _SHOWN if name in values)
        self.progress.step(step + 1, steps, f"{stage.name}: {losses}")
        epoch, position = divmod(step, per_epoch)
        epoch, position = epoch + 1, position + 1
        epoch_ends = position == per_epoch
        if epoch_ends:
            self.progress.stage(f"{stage.name}: epoch {epoch} of {stage.epochs}, step {step + 1} of {steps}: {losses}")
        # The rows of an epoch have the same number of steps each, or one less: their plain mean is about that of the epoch.
        rows = -(-per_epoch // _STEPS_OF_A_ROW)
        if position * rows // per_epoch > (position - 1) * rows // per_epoch:
            rate = f"{self.options.learning_rate * factor:.3g}"
            self.log.end_row({"stage": stage.name, "epoch": epoch, "step": step + 1, "learning_rate": rate})

    def _write_state(self, stage: int, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        if not self.processes.is_first:
            return
        state = State(stage, step, self.model.state_dict(), None if optimizer is None else optimizer.state_dict())
        write_state(self.folder / STATE_NAME, self.identity, state)
        self.log.write()

    # ---- the end --------------------------------------------------------------------------------------------------------

    def finish(self, split: CocoSplit) -> Training | None:
        """Writes the checkpoint with frozen batch norm, the recipe and the plot, and removes the state."""
        if not self.processes.is_first:
            return None
        frozen: DetrWithHeads = type(self.model)(self.model.config)
        load_strictly(frozen, {name: value.cpu() for name, value in self.model.state_dict().items()}, "training")
        self.log.write()
        self.log.plot()
        frozen.save_pretrained(self.folder, self.processor, self.options.fp16_weights)
        left_out = {"images": split.bad_images, "annotations": split.bad_annotations}
        recipe = {
            "data": split.images.parent.name,
            "images": len(split),
            "left_out": left_out,
            "steps": self.steps,
            "processes": self.processes.count,
            "device": self.processes.device.type,
            "tools": {"torch": torch.__version__, "python": platform.python_version()},
            "options": self.options.to_dict(),
        }
        write_atomically(self.folder / RECIPE_NAME, (json.dumps(recipe, indent=2) + "\n").encode())
        (self.folder / STATE_NAME).unlink(missing_ok=True)
        return Training(self.folder, self.steps, self.log.rows[-1] if self.log.rows else {}, left_out)


def _begin_worker(number: int) -> None:
    ignore_interrupts()
    torch.set_num_threads(1)
