"""The training loop: DETR's recipe (paper, appendix A.4) in stages, resumable to the same weights.

Batches, augmentation and dropout of a step depend on the seed and the step alone. The state is written at the end of each
epoch and on Ctrl-C; a run that goes on from it ends in the weights that the uninterrupted run would have ended in, on the
same machine and with the same number of processes.
"""

from __future__ import annotations

import io
import json
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detr_export.checkpoints.reading import Checkpoint, load_strictly
from detr_export.coco_folder import read_split
from detr_export.modeling.detr import DetrWithHeads
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import DetrError, InputError, OutputError
from detr_export.runtimes.files import require_writable, write_atomically
from detr_export.training.dataset import Augmentation, CocoDataset, ShuffledBatches, collate
from detr_export.training.objective import DetectorObjective, MaskObjective
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.processes import Processes, joined
from detr_export.training.starting_point import StartingPoint, starting_point
from detr_export.training.training_log import TrainingLog

STATE_NAME = "training_state.pt"  # there until the last step is done
RECIPE_NAME = "recipe.json"
_LOG_EVERY = 10  # steps
_DROP_TO = 0.1

Report = Callable[[str], None]
Bar = Callable[[str, int, int, str], None]  # told the stage, steps done, steps in all, and the losses


@dataclass(frozen=True)
class Training:
    """What a finished run says of itself."""

    directory: Path  # the checkpoint
    steps: int  # of all stages
    last: Mapping[str, str]  # the last row of the log

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"directory": str(self.directory), "steps": self.steps, "last": dict(self.last)}


def train(
    data: str | Path,
    output: str | Path,
    options: TrainingOptions,
    config: str | Path | None = None,
    checkpoint: Checkpoint | None = None,
    device: str = "cpu",
    workers: int = 2,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = lambda line: None,
    bar: Bar = lambda stage, done, steps, losses: None,
) -> Training | None:
    """Trains a DETR on the `train` split of a COCO folder and writes the checkpoint.

    Args:
        data: the folder, see `coco_folder`.
        output: folder of the checkpoint, the log, and while the run lasts its state.
        options: the recipe.
        config, checkpoint: what to start from, see `starting_point`.
        device: `cpu`, `cuda` or `cuda:N`. Under torchrun all its processes train together.
        workers: processes that prepare batches; 0 prepares them in between.
        resume: go on from the state that an interrupted run left in `output`.
        overwrite: begin anew in a folder that holds a checkpoint or a state.
        report: told in a line what is going on.
        bar: told after each step how far the stage is.

    Returns:
        What came of it; None in all but the first process of a torchrun.

    Raises:
        AnnotationError, ImageError: the data.
        CheckpointError, InputError: what to start from, the options, or a loss that is no number any more.
        OutputError: `output` holds something else, or cannot be written.
        BackendError: the device or an extra is missing.
        KeyboardInterrupt: on Ctrl-C, after the step in progress and with the state written.
    """
    with joined(device) as processes:
        split = read_split(data, "train", options.task)
        start = starting_point(split, options, config, checkpoint)
        run = _Run(Path(output), options, start, processes, report, bar)
        run.begin(resume, overwrite, len(split))
        for note in (f"{len(split)} images, {len(split.categories)} classes", *start.notes):
            run.report(note)
        for number, stage in enumerate(options.stages):
            with_masks = stage.name != "detector" and options.task == "panoptic"
            augmentation = Augmentation(options.flip, options.scale)
            # Each stage sees the images in other variations and another order.
            dataset = CocoDataset(split, start.processor, with_masks, augmentation, options.seed + number)
            run.train_stage(number, stage, dataset, workers)
        return run.finish(data)


class _Run:
    """One run in one process."""

    def __init__(
        self, folder: Path, options: TrainingOptions, start: StartingPoint, processes: Processes, report: Report, bar: Bar
    ) -> None:
        self.folder = folder
        self.options = options
        # Channels last: a fifth faster on the CPU, and what tensor cores want.
        self.model = start.model.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if processes.count > 1 and processes.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.processor = start.processor
        self.processes = processes
        self.report: Report = report if processes.is_first else lambda line: None
        self.bar: Bar = bar if processes.is_first else lambda stage, done, steps, losses: None
        self.log = TrainingLog(folder)
        self.trainable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.first_stage, self.first_step = 0, 0
        self.optimizer_state: dict[str, Any] | None = None
        self.steps = 0

    # ---- state ----------------------------------------------------------------------------------------------------------

    def begin(self, resume: bool, overwrite: bool, records: int) -> None:
        """Reads the state to go on from, or makes sure that there is none."""
        self.identity = {
            **self.options.to_dict(),
            "config": json.dumps(self.model.config.to_dict(), sort_keys=True),
            "images": records,
            "processes": self.processes.count,
        }
        state_file = self.folder / STATE_NAME
        require_writable(state_file, overwrite=True)
        if resume:
            self._read_state(state_file)
        elif not overwrite:
            for file in (state_file, self.folder / "model.safetensors"):
                if file.exists():
                    remedy = "--resume to go on, or " if file == state_file else ""
                    raise OutputError(f"{file} exists; add {remedy}--overwrite to begin anew")

    def _read_state(self, file: Path) -> None:
        if not file.is_file():
            raise InputError(f"{file} does not exist: there is no unfinished run to resume; leave --resume out")
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            identity, model = state["identity"], state["model"]
            self.first_stage, self.first_step, self.optimizer_state = state["stage"], state["step"], state["optimizer"]
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
            raise InputError(f"{file} is damaged and cannot be resumed; begin anew with --overwrite") from error
        other = [name for name, value in self.identity.items() if identity.get(name) != value]
        if other:
            told = ", ".join(name if name == "config" else f"{name} {identity.get(name)}" for name in other)
            raise InputError(f"{file} is of another run: {told}; resume with the options of that run")
        self.model.load_state_dict(model)
        if self.first_stage < len(self.options.stages):
            self.log.resume(self.options.stages[self.first_stage].name, self.first_step)

    def _write_state(self, stage: int, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        if not self.processes.is_first:
            return
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self.identity,
                "stage": stage,
                "step": step,
                "model": self.model.state_dict(),
                "optimizer": None if optimizer is None else optimizer.state_dict(),
            },
            buffer,
        )
        write_atomically(self.folder / STATE_NAME, buffer.getvalue())
        self.log.write()

    # ---- one stage ------------------------------------------------------------------------------------------------------

    def train_stage(self, number: int, stage: Stage, dataset: CocoDataset, workers: int) -> None:
        """Trains what is left of a stage."""
        options, processes = self.options, self.processes
        batches = ShuffledBatches(len(dataset), options.batch_size, dataset.seed, range(0), processes.rank, processes.count)
        per_epoch = batches.steps_per_epoch
        if per_epoch == 0:
            raise InputError(
                f"{len(dataset)} images do not fill a batch of {options.batch_size} in {processes.count} processes; "
                "give a smaller --batch"
            )
        steps = stage.epochs * per_epoch
        self.steps += steps
        if number < self.first_stage:
            return
        batches.steps = range(self.first_step if number == self.first_stage else 0, steps)
        objective = self._objective(stage)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = self._optimizer()
        if number == self.first_stage and self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=_begin_worker,
            pin_memory=processes.device.type == "cuda",
        )
        schedule = _Schedule(options, steps)
        with _interrupts() as interrupted:
            clock = time.monotonic()
            for step, batch in zip(batches.steps, loader, strict=True):
                if isinstance(batch, DetrError):
                    raise batch
                torch.manual_seed(options.seed + 1_000_003 * (step * processes.count + processes.rank) + number)
                factor = schedule.factor(step)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                loss, terms = objective(batch.to(processes.device))
                if not math.isfinite(float(loss.detach())):
                    raise InputError(f"the loss of step {step + 1} is {float(loss.detach())}; give a lower --learning-rate")
                optimizer.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, options.clip or math.inf)
                optimizer.step()
                now = time.monotonic()
                speed = options.batch_size * processes.count / max(now - clock, 1e-9)
                clock = now
                self._note(stage, step, per_epoch, steps, {"loss": loss, "gradient_norm": norm, **terms}, speed, factor)
                if (step + 1) % per_epoch == 0 and step + 1 < steps:
                    self._write_state(number, step + 1, optimizer)
                if interrupted:
                    self._write_state(number, step + 1, optimizer)
                    self.report(f"interrupted after step {step + 1} of {steps} ({stage.name}); add --resume to go on")
                    raise KeyboardInterrupt
        self._write_state(number + 1, 0, None)

    def _objective(self, stage: Stage) -> nn.Module:
        """Sets what is trained, and wraps it for a distributed run."""
        model = self.model
        masks_only = stage.name == "masks"
        for name, parameter in model.named_parameters():
            of_masks = not name.startswith("detr.") and isinstance(model, DetrForSegmentation)
            trained = {"detector": not of_masks, "masks": of_masks, "all": True}[stage.name]
            parameter.requires_grad_(trained and name in self.trainable)
        model.train()
        if masks_only:
            model.detector.eval()  # no dropout, and no new statistics: the masks are drawn on what will be deployed
        objective: nn.Module
        if stage.name == "detector":
            objective = DetectorObjective(model)
        else:
            assert isinstance(model, DetrForSegmentation)
            objective = MaskObjective(model, with_detector=not masks_only)
        if self.processes.count == 1:
            return objective
        gpus = [self.processes.device.index] if self.processes.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(objective, device_ids=gpus)

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        backbone = [parameter for name, parameter in named if "conv_encoder" in name]
        rest = [parameter for name, parameter in named if "conv_encoder" not in name]
        groups: list[dict[str, Any]] = [{"params": rest, "initial_lr": options.learning_rate}]
        if backbone:
            groups.append({"params": backbone, "initial_lr": options.backbone_learning_rate})
        return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)

    def _note(
        self,
        stage: Stage,
        step: int,
        per_epoch: int,
        steps: int,
        values: Mapping[str, Tensor],
        speed: float,
        factor: float,
    ) -> None:
        self.log.add({**{name: float(value.detach()) for name, value in values.items()}, "images_per_second": speed})
        losses = " ".join(f"{name} {self.log.mean(name):.3f}" for name in _shown(values))
        self.bar(stage.name, step + 1, steps, losses)
        epoch_ends = (step + 1) % per_epoch == 0
        epoch = step // per_epoch + 1
        if epoch_ends:
            self.report(f"{stage.name}: epoch {epoch} of {stage.epochs}, step {step + 1} of {steps}: {losses}")
        if epoch_ends or (step + 1) % _LOG_EVERY == 0:
            rate = f"{self.options.learning_rate * factor:.3g}"
            self.log.end_row({"stage": stage.name, "epoch": epoch, "step": step + 1, "learning_rate": rate})

    # ---- the end --------------------------------------------------------------------------------------------------------

    def finish(self, data: str | Path) -> Training | None:
        """Writes the checkpoint with frozen batch norm, the recipe and the plot, and removes the state."""
        if not self.processes.is_first:
            return None
        # The hub's configurations say so too: the auxiliary loss is of training, and costs a deployed model time.
        frozen: DetrWithHeads = type(self.model)(replace(self.model.config, auxiliary_loss=False))
        load_strictly(frozen, {name: value.cpu() for name, value in self.model.state_dict().items()}, "training")
        self.log.write()
        self.log.plot()
        frozen.save_pretrained(self.folder, self.processor, self.options.half)
        recipe = {
            "data": Path(data).name,
            "images": self.identity["images"],
            "steps": self.steps,
            "processes": self.processes.count,
            "device": self.processes.device.type,
            "tools": {"torch": torch.__version__, "python": platform.python_version()},
            "options": self.options.to_dict(),
        }
        write_atomically(self.folder / RECIPE_NAME, (json.dumps(recipe, indent=2) + "\n").encode())
        (self.folder / STATE_NAME).unlink(missing_ok=True)
        return Training(self.folder, self.steps, self.log.rows[-1] if self.log.rows else {})


class _Schedule:
    """The factor on the learning rates: a linear rise over the warm-up, 1, and 0.1 after the drop."""

    def __init__(self, options: TrainingOptions, steps: int) -> None:
        self.warmup = options.warmup
        self.drop = round(options.drop * steps)

    def factor(self, step: int) -> float:
        """For a step counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * (1.0 if step < self.drop else _DROP_TO)


def _shown(values: Mapping[str, Tensor]) -> list[str]:
    return [name for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice") if name in values]


def _begin_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    torch.set_num_threads(1)


class _Flag:
    """Whether something has happened."""

    def __init__(self) -> None:
        self.up = False

    def __bool__(self) -> bool:
        return self.up


@contextmanager
def _interrupts() -> Iterator[_Flag]:
    """Holds back Ctrl-C until the step is done: in the middle of an optimiser's step the weights are of no run."""
    flag = _Flag()

    def raise_flag(number: int, frame: object) -> None:
        if flag:
            raise KeyboardInterrupt  # the second time somebody means it
        flag.up = True

    try:
        before = signal.signal(signal.SIGINT, raise_flag)
    except ValueError:  # not the main thread, which gets no signals
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
