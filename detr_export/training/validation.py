"""How good a model is on pictures that it is not trained on: losses and scores, after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.data.splits import CocoSplit
from detr_export.loading import reference_session
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import InputError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.progress import Progress
from detr_export.training.dataset import Batch, CocoDataset, collate
from detr_export.training.objective import DetectorObjective, MaskObjective
from detr_export.training.options import Stage, TrainingOptions
from detr_export.training.prediction_grid import draw_grid

# Scores in [0, 1]. The first of them that there is decides which checkpoint is the best one.
SCORES = ("PQ", "mask_AP", "box_AP", "box_AP50")
Score = Callable[[Predictor, int | None, Progress], Mapping[str, float]]
Plot = Callable[[Predictor, int | None, Progress, Path], None]


@dataclass(frozen=True)
class Validation:
    """What a run is validated on.

    `score` gives the scores of an open model, as far as its stage and the annotations have them, on the first so many images
    or on all. `plot` writes plots of the finished model into a folder. `detr_export.benchmarks.accuracy.validation` makes
    both.
    """

    split: CocoSplit
    score: Score
    plot: Plot


@dataclass(frozen=True)
class Validated:
    """What came of a validation."""

    losses: Mapping[str, float]  # means over the images: loss, loss_ce, ...
    scores: Mapping[str, float]  # by the names of `SCORES`
    picture: Image.Image  # predictions beside the annotations

    @property
    def decisive(self) -> tuple[str, float]:
        """Name and value of the score that decides."""
        return next((name, self.scores[name]) for name in SCORES if name in self.scores)

    def summary(self) -> str:
        """For people, on one line."""
        scores = [f"{name.replace('_', ' ')} {self.scores[name]:.3f}" for name in SCORES if name in self.scores]
        return f"loss {self.losses['loss']:.3f}, {', '.join(scores)}"


def validate(
    checkpoint: Path, validation: Validation, stage: Stage, options: TrainingOptions, device: str, progress: Progress
) -> Validated:
    """Validates a checkpoint, as it was written.

    Args:
        checkpoint: a folder.
        validation: the pictures.
        stage: decides which losses and scores there are.
        options: the recipe.
        device: `cpu` or `cuda:N`.
        progress: is told the images.

    Raises:
        InputError: there is nothing to score.
        Others as `Predictor` and the evaluators.
    """
    loaded = load_checkpoint(str(checkpoint))
    losses = _losses(loaded, validation.split, stage, options, device, progress)
    task = "detection" if stage.name == "detector" else None
    with Predictor(reference_session(loaded, task=task, device=device)) as predictor:
        scores = validation.score(predictor, options.validation_images, progress)
        picture = draw_grid(predictor, validation.split)
    if not scores:
        raise InputError(f"{validation.split.images}: the annotations of the split val have nothing to score")
    return Validated(losses, scores, picture)


@torch.no_grad()
def _losses(
    checkpoint: Checkpoint, split: CocoSplit, stage: Stage, options: TrainingOptions, device: str, progress: Progress
) -> dict[str, float]:
    """The terms of the training loss on pictures without variations."""
    place = torch.device(device)
    objective: DetectorObjective
    if stage.name == "detector":
        objective = DetectorObjective(DetrForObjectDetection.from_checkpoint(checkpoint).to(place), alone=True)
    else:
        model = DetrForSegmentation.from_checkpoint(checkpoint).to(place)
        objective = MaskObjective(model, with_detector=stage.name == "all", alone=True)
    dataset = CocoDataset(split, checkpoint.processor, stage.name != "detector", None, options.seed)
    count = min(len(dataset), options.validation_images or len(dataset))
    sums: dict[str, float] = {}
    for start in range(0, count, options.batch_size):
        progress.step(start, count, "validating")
        batch = collate([dataset[0, index] for index in range(start, min(start + options.batch_size, count))])
        if not isinstance(batch, Batch):
            raise batch
        loss, terms = objective(batch.to(place))
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(batch.targets)
    return {name: value / count for name, value in sums.items()}
