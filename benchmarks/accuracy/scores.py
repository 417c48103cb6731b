"""Scores of the measured models on a COCO folder, so that a report says what the speed costs in accuracy.

The folder is laid out as `detr_export.coco_folder` says. Its split `val` is scored: boxes, masks, and PQ where there are
panoptic annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detr_export.benchmarks.speed.report import Accuracy
from detr_export.benchmarks.speed.targets import BACKENDS, Target
from detr_export.coco_folder import find_split
from detr_export.runtimes.devices import OPENVINO
from detr_export.runtimes.files import user_path

# The backends that a Predictor opens. In the others, the outputs of the same weights were compared.
SCORED = ("torch", "torch-cuda", "ort", "ort-cuda", "openvino")


@dataclass(frozen=True)
class Annotated:
    """Where the annotated images are."""

    images: Path  # folder
    instances: Path  # file
    panoptic: tuple[Path, Path] | None  # file and folder of its PNGs


def find_annotated(folder: str | Path) -> Annotated:
    """Finds the split `val` of a COCO folder, and its panoptic annotations if there are any.

    Raises:
        AnnotationError: a file or folder of it is missing, or several fit.
    """
    root = user_path(folder)
    boxes = find_split(root, "val", "detection")
    panoptic = None
    file = root / "annotations" / f"panoptic_{boxes.images.name}.json"
    if file.is_file() and file.with_suffix("").is_dir():
        panoptic = (file, file.with_suffix(""))
    return Annotated(boxes.images, boxes.annotations, panoptic)


def score(target: Target, data: Annotated, masks: bool, limit: int | None, threads: int) -> Accuracy:
    """Scores a target: box AP, and for a model that draws masks also mask AP and, where there are annotations for it, PQ.

    Raises:
        DetrError: as `detr_export.benchmarks.accuracy.evaluation.evaluate`.
    """
    from detr_export.benchmarks.accuracy.evaluation import evaluate

    panoptic = data.panoptic if masks else None
    device = OPENVINO if target.backend == OPENVINO else BACKENDS[target.backend].device
    found = evaluate(target.source, data.images, data.instances, panoptic, limit, device=device, threads=threads)
    metrics = found.accuracy.metrics()
    return Accuracy(
        variant=target.name,
        images=found.images,
        box_AP=metrics["box"]["AP"],
        box_AP50=metrics["box"]["AP50"],
        mask_AP=metrics.get("mask", {}).get("AP"),
        PQ=metrics.get("panoptic", {}).get("PQ"),
    )
