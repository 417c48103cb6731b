"""The training loop: DETR's recipe (paper, appendix A.4) in stages, resumable to the same weights.

Batches, variations and dropout of a step depend on the seed and the step alone. The state is written at the end of each
epoch and on Ctrl-C; a run that goes on from it ends in the weights that the uninterrupted run would have ended in, on the
same machine and with the same number of processes.

What a run leaves in its folder: `last/`, the checkpoint after the last epoch; `best/`, that with the best score, if it was
validated; the one of the two that counts in the folder itself; the logs, their plot, and a picture of predictions for each
epoch, plots of what the finished model confuses; the recipe; and the state, for more epochs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.data.splits import CocoSplit, read_split
from detr_export.runtimes.errors import CheckpointError, DetrError, InputError, OutputError
from detr_export.runtimes.files import require_writable, write_atomically
from detr_export.runtimes.orphans import end_with
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.training.augmentation import Augmentation
from detr_export.training.dataset import CocoDataset, ShuffledBatches, collate_parts
from detr_export.training.interruption import held_interrupts, ignore_interrupts
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.processes import Processes, joined, require_room_for_sockets, said_by_first
from detr_export.training.result import Training
from detr_export.training.run_folder import RunFolder
from detr_export.training.run_record import Clock, RunRecord
from detr_export.training.starting_point import StartingPoint, saved_point, starting_point
from detr_export.training.state import STATE_NAME, Best, Identity, State, read_state, write_state
from detr_export.training.stepping import Stepper
from detr_export.training.tensorboard import Board
from detr_export.training.validation import Validation, validate

RECIPE_NAME = "recipe.json"
PLOTS_FOLDER = "plots"


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
    validation: Validation | None = None,
    tensorboard: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Training | None:
    """Trains a DETR on a split of a data set and writes the checkpoint.

    Args:
        data: the folder, see `data.layouts`, of which the split `train` is taken, or a split from `read_split`. All of it is
            checked before the first step.
        output: folder of the run.
        options: the recipe.
        config, checkpoint: what to start from, see `starting_point`. A run that goes on needs neither.
        device: `cpu`, `cuda` or `cuda:N`. Under torchrun all its processes train together.
        workers: processes that prepare batches; 0 prepares them in this one.
        resume: go on from the state in `output`: of an interrupted run, or of a finished one for more epochs.
        overwrite: begin anew in a folder that holds a checkpoint or a state.
        progress: is told what goes on, and after each step how far the stage is.
        validation: what each epoch is scored on; without it the last weights are the checkpoint.
        tensorboard: also write events for TensorBoard.
        arguments: JSON values that the state keeps, for whoever resumes the run.

    Returns:
        What came of it; None in all but the first process of a torchrun.

    Raises:
        DatasetError: images or annotations are bad; `read_split` with `skip_bad` leaves them out.
        AnnotationError, ImageError: the data is not usable.
        CheckpointError, InputError: what to start from or an option is not usable, or a loss is not a number any more.
        OutputError: `output` holds something else, or cannot be written.
        BackendError: the device or an extra is missing.
        KeyboardInterrupt: on Ctrl-C or, in a command, SIGTERM, after the step in progress and with the state written.
    """
    if options.patience is not None and validation is None:
        raise InputError("patience needs a validation, and there is none; the data has no split val")
    require_room_for_sockets(workers)
    with joined(device) as processes:
        told = progress if processes.is_first else SILENT
        split = data if isinstance(data, CocoSplit) else read_split(data, "train", options.task, progress=told)
        if split.task != options.task:
            raise InputError(
                f"the data was read for the task {split.task}, and task is {options.task}; read it for that one"
            )
        state = read_state(Path(output) / STATE_NAME) if resume else None
        if state is not None and config is None and checkpoint is None:
            start = saved_point(state)
        else:
            start = starting_point(split, options, config, checkpoint)
        with Board(Path(output) if tensorboard and processes.is_first else None) as board:
            run = _Run(Path(output), options, start, processes, split, told, validation, board, arguments or {})
            run.begin(state, overwrite)
            for note in (*_about(split, validation), *start.notes):
                told.stage(note)
            augmentation = Augmentation(options.flip, options.scale, options.crop, options.color_jitter)
            for number, stage in enumerate(options.stages):
                # Each stage sees the images in other variations and another order.
                with_masks = stage.name != "detector" and options.task == "panoptic"
                dataset = CocoDataset(split, start.processor, with_masks, augmentation, options.seed + number)
                run.train_stage(number, stage, dataset, workers)
            return run.finish()


def _about(split: CocoSplit, validation: Validation | None) -> list[str]:
    held_out = "" if validation is None else f", and {len(validation.split)} to validate on"
    notes = [f"{len(split)} images, {len(split.categories)} classes{held_out}"]
    if split.bad_images or split.bad_annotations:
        notes.append(f"left out as bad: {split.bad_images} images, {split.bad_annotations} annotations")
    return notes


class _Run:
    """One run in one process.

    Args:
        folder: of the run.
        options: the recipe.
        start: the model to train.
        processes: that share the run.
        split: what it is trained on.
        progress: told of the run.
        validation: what it is validated on.
        board: of TensorBoard.
        arguments: see `train`.
    """

    def __init__(
        self,
        folder: Path,
        options: TrainingOptions,
        start: StartingPoint,
        processes: Processes,
        split: CocoSplit,
        progress: Progress,
        validation: Validation | None,
        board: Board,
        arguments: Mapping[str, Any],
    ) -> None:
        self.options, self.start, self.processes, self.split = options, start, processes, split
        self.progress, self.validation, self.arguments = progress, validation, arguments
        # Channels last: a fifth faster on the CPU, and the layout for tensor cores.
        self.model = start.model.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if processes.count > 1 and processes.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.trainable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.folder = RunFolder(folder, start.processor, options.fp16_weights)
        self.record = RunRecord(folder, progress, board)
        config = json.dumps(self.model.config.to_dict(), sort_keys=True)
        self.identity = Identity(
            options.to_dict(),
            config,
            start.processor.to_dict(),
            start.whole_backbone,
            len(split),
            processes.count,
            start.source,
        )
        self.origin = State(self.identity, 0, 0, {})  # where the run begins, or goes on
        self.steps = 0  # of all stages so far
        self.best: Best | None = None  # of the stage

    # ---- the beginning --------------------------------------------------------------------------------------------------

    def begin(self, state: State | None, overwrite: bool) -> None:
        """Takes over the state to go on from, or makes sure that there is none."""
        state_file = self.folder.path / STATE_NAME
        require_writable(state_file, overwrite=True)
        if state is None:
            for file in (state_file, self.folder.path / "model.safetensors"):
                if file.exists() and not overwrite:
                    remedy = "--resume to go on, or " if file == state_file else ""
                    raise OutputError(f"{file} exists; add {remedy}--overwrite to begin anew")
            return
        self.identity.require_same(state.identity, state_file)
        stages, before = self.options.stages, state.options.stages
        if stages[: state.stage] != before[: state.stage]:
            raise InputError(f"{state_file}: the stage {before[0].name} is over, so its epochs stay {before[0].epochs}")
        if state.stopped and stages[state.stage] != before[state.stage]:  # patience begins anew with the new epochs
            best = None if state.best is None else replace(state.best, since=0)
            state = replace(state, stopped=False, best=best)
        self.origin = state
        with _fitting(state_file, "model"):
            self.model.load_state_dict(state.model)
        self.record.resume(stages[state.stage].name, state.step)

    # ---- one stage ------------------------------------------------------------------------------------------------------

    def train_stage(self, number: int, stage: Stage, dataset: CocoDataset, workers: int) -> None:
        """Trains what is left of a stage."""
        # How many steps the stage has, and which of them are left.
        options, processes = self.options, self.processes
        images = options.batch_size * options.accumulate  # of a step
        batches = ShuffledBatches(len(dataset), images, dataset.seed, range(0), processes.rank, processes.count)
        per_epoch = batches.steps_per_epoch
        if per_epoch == 0:
            raise InputError(
                f"{len(dataset)} images do not fill a batch of {images} in {processes.count} processes; "
                "give a smaller --batch"
            )
        steps = stage.epochs * per_epoch
        if number < self.origin.stage:
            self.steps += steps
            return
        goes_on = number == self.origin.stage
        begin = self.origin.step if goes_on else 0
        self.steps += begin
        if goes_on and begin:
            self._require_more(steps, per_epoch)
        batches.steps = range(begin, begin if goes_on and self.origin.stopped else steps)

        # What is trained, and with what.
        stepper = Stepper(self.model, self.trainable, stage, steps, options, processes)
        if goes_on:
            with _fitting(self.folder.path / STATE_NAME, "optimizer"):
                stepper.resume(self.origin)
        self.best = self.origin.best if goes_on else None
        loader = self._loader(dataset, batches, workers)

        # The steps. Ctrl-C waits for the end of one.
        with held_interrupts() as interrupted:
            clock = Clock()
            for step, parts in zip(batches.steps, loader, strict=True):
                if isinstance(parts, DetrError):
                    raise parts
                torch.manual_seed(options.seed + 1_000_003 * (step * processes.count + processes.rank) + number)
                values = stepper.step(step, parts)
                self.steps += 1
                values["images_per_second"] = images * processes.count / clock.lap()
                left = clock.left(steps - step - 1)
                self.record.step(stage, step, per_epoch, values, stepper.learning_rate(step), left)
                ends_epoch = (step + 1) % per_epoch == 0
                stopped = ends_epoch and self._end_epoch(stage, (step + 1) // per_epoch, step + 1, stepper)
                goes_away = bool(interrupted)
                if goes_away and not ends_epoch:  # the end of an epoch has written it
                    self._write_last(stepper)
                if goes_away or ends_epoch:
                    self._write_state(number, step + 1, stepper, stopped)
                    clock.lap()
                if goes_away:
                    self.progress.stage(
                        f"interrupted after step {step + 1} of {steps} ({stage.name}); add --resume to go on"
                    )
                    raise KeyboardInterrupt
                if stopped:
                    break
        if number + 1 < len(options.stages):
            self._hand_over()
            self._write_state(number + 1, 0, None)

    def _require_more(self, steps: int, per_epoch: int) -> None:
        """Refuses to go on where nothing is left to do."""
        origin, finished = self.origin, (self.folder.path / RECIPE_NAME).exists()
        over = origin.step == steps or origin.stopped
        if origin.step > steps or (over and finished and origin.stage + 1 == len(self.options.stages)):
            done = f"{origin.step / per_epoch:g}"
            raise InputError(
                f"{self.folder.path} has been trained for {done} epochs of the stage "
                f"{self.options.stages[origin.stage].name} already; give more epochs to go on"
            )

    def _loader(self, dataset: CocoDataset, batches: ShuffledBatches, workers: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=functools.partial(collate_parts, self.options.accumulate),
            num_workers=workers,
            worker_init_fn=functools.partial(_begin_worker, os.getpid()),
            pin_memory=self.processes.device.type == "cuda",
        )

    # ---- between epochs and stages --------------------------------------------------------------------------------------

    def _end_epoch(self, stage: Stage, epoch: int, step: int, stepper: Stepper) -> bool:
        """Writes and validates a checkpoint; returns whether the stage ends here, before its last epoch."""
        self._write_last(stepper)
        due = epoch % self.options.validate_every == 0 or epoch == stage.epochs
        patience, ends = self.options.patience, False
        if self.validation is not None and due and self.processes.is_first:
            device = str(self.processes.device)
            found = validate(self.folder.last, self.validation, stage, self.options, device, self.progress)
            score = found.decisive[1]
            if self.best is None or score > self.best.score:
                self.folder.keep_best()
                self.best = Best(score, epoch)
            else:
                self.best = replace(self.best, since=self.best.since + 1)
            self.record.validation(found, stage, epoch, step, self.best)
            ends = patience is not None and self.best.since >= patience and epoch < stage.epochs
            if ends:
                self.progress.stage(f"{stage.name}: no better score in {patience} validations; the stage ends")
        return said_by_first(ends, self.processes)

    def _write_last(self, stepper: Stepper) -> None:
        if self.processes.is_first:
            self.folder.write_last(stepper.deployable)  # type: ignore[arg-type]

    def _write_state(self, stage: int, step: int, stepper: Stepper | None, stopped: bool = False) -> None:
        if not self.processes.is_first:
            return
        state = State(self.identity, stage, step, self.model.state_dict(), stopped=stopped, arguments=self.arguments)
        if stepper is not None:
            average = None if stepper.average is None else stepper.average.state_dict()
            state = replace(
                state,
                optimizer=stepper.optimizer.state_dict(),
                average=average,
                precision=stepper.precision.state_dict(),
                best=self.best,
            )
        write_state(self.folder.path / STATE_NAME, state)
        self.record.write()

    def _hand_over(self) -> None:
        """Gives the next stage the weights that would be deployed: the best ones, or the average."""
        if self.validation is None and not self.options.ema:
            return
        said_by_first(None, self.processes)  # the files are written
        chosen = self.folder.best if self.validation is not None else self.folder.last
        found = self.model.load_state_dict(load_checkpoint(str(chosen)).state_dict, strict=False)
        absent = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
        assert not absent
        assert not found.unexpected_keys

    # ---- the end --------------------------------------------------------------------------------------------------------

    def finish(self) -> Training | None:
        """Puts the checkpoint that counts into the folder, and the recipe beside it."""
        if not self.processes.is_first:
            return None
        self.folder.finish(with_best=self.validation is not None)
        if self.validation is not None:
            with Predictor.load(self.folder.path, str(self.processes.device)) as predictor:
                limit = self.options.validation_images
                self.validation.plot(predictor, limit, self.progress, self.folder.path / PLOTS_FOLDER)
        best = None if self.validation is None else self.record.best
        left_out = {"images": self.split.bad_images, "annotations": self.split.bad_annotations}
        recipe = {
            "source": self.start.source,
            "data": self.split.images.parent.name,
            "layout": self.split.layout,
            "images": len(self.split),
            "validation_images": 0 if self.validation is None else len(self.validation.split),
            "left_out": left_out,
            "steps": self.steps,
            "best": best,
            "processes": self.processes.count,
            "device": self.processes.device.type,
            "tools": {"torch": torch.__version__, "python": platform.python_version()},
            "options": self.options.to_dict(),
        }
        write_atomically(self.folder.path / RECIPE_NAME, (json.dumps(recipe, indent=2) + "\n").encode())
        return Training(self.folder.path, self.steps, self.record.last, left_out, best)


@contextlib.contextmanager
def _fitting(file: Path, field: str) -> Iterator[None]:
    """Turns what PyTorch raises for a state of another model into an error that names the file and the field."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file}: {field} does not fit the model: {why}; begin anew with --overwrite") from error


def _begin_worker(parent: int, number: int) -> None:
    end_with(parent)
    ignore_interrupts()
    torch.set_num_threads(1)
