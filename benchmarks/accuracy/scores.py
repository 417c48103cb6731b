"""Scores of the measured models on a COCO folder, so that a report says what the speed costs in accuracy.

DIR/val2017/*.jpg                             any name that begins with val
DIR/annotations/instances_val2017.json
DIR/annotations/panoptic_val2017.json         optional, with DIR/annotations/panoptic_val2017/*.png: PQ
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detr_export.benchmarks.speed.report import Accuracy
from detr_export.benchmarks.speed.targets import BACKENDS, Target
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.files import user_path

SCORED = ("torch", "ort", "ort-cuda")  # what a Predictor opens; the same weights elsewhere were compared by their outputs


@dataclass(frozen=True)
class Annotated:
    """Where the split lies."""

    images: Path  # folder
    instances: Path  # file
    panoptic: tuple[Path, Path] | None  # file and folder of its PNGs


def find_annotated(folder: str | Path) -> Annotated:
    """Finds the split `val` of a COCO folder.

    Raises:
        AnnotationError: a file or folder of it is missing, or there are several.
    """
    root = user_path(folder)
    found = sorted((root / "annotations").glob("instances_val*.json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AnnotationError(f"{root / 'annotations'} should hold one instances_val*.json; found {names}")
    split = found[0].stem.removeprefix("instances_")
    images = root / split
    if not images.is_dir():
        raise AnnotationError(f"{images} does not exist; expected the images of {found[0]} in it")
    panoptic = root / "annotations" / f"panoptic_{split}.json"
    masks = panoptic.with_suffix("")
    return Annotated(images, found[0], (panoptic, masks) if panoptic.is_file() and masks.is_dir() else None)


def score(target: Target, data: Annotated, masks: bool, limit: int | None, threads: int) -> Accuracy:
    """Box AP, and for a model that draws masks the mask AP and, where annotated, PQ.

    Raises:
        DetrError: as `detr_export.benchmarks.accuracy.evaluation.evaluate`.
    """
    from detr_export.benchmarks.accuracy.evaluation import evaluate

    panoptic = data.panoptic if masks else None
    device = BACKENDS[target.backend].device
    found = evaluate(
        target.source, data.images, data.instances, panoptic, limit, device=device, threads=threads, progress=False
    )
    metrics = found.accuracy.metrics()
    return Accuracy(
        variant=target.name,
        images=found.images,
        box_AP=metrics["box"]["AP"],
        box_AP50=metrics["box"]["AP50"],
        mask_AP=metrics.get("mask", {}).get("AP"),
        PQ=metrics.get("panoptic", {}).get("PQ"),
    )
