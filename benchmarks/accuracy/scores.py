"""Scores of the measured models on annotated pictures, so that a report says what the speed costs in accuracy.

The data set is laid out as `detr_export.data.layouts` says. Its split `val` is scored: boxes, masks, and PQ where there are
panoptic annotations.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from detr_export.benchmarks.speed.report import Accuracy
from detr_export.benchmarks.speed.targets import BACKENDS, Target
from detr_export.data.documents import pictures_of
from detr_export.data.layouts import COCO, VAL, SplitFiles, find_split
from detr_export.runtimes.devices import OPENVINO
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.files import user_path
from detr_export.runtimes.processing.annotations.coco_file import AnnotationSource, read_annotation_file

# The backends that a Predictor opens. In the others, the outputs of the same weights were compared.
SCORED = ("torch", "torch-cuda", "ort", "ort-cuda", "openvino")


@dataclass(frozen=True)
class Annotated:
    """Where the annotated images are."""

    images: Path  # folder
    instances: AnnotationSource  # file, or its document
    panoptic: tuple[Path, Path] | None  # file and folder of its PNGs

    def pictures(self) -> list[Path]:
        """The pictures that are scored.

        Raises:
            AnnotationError: the annotations cannot be read.
        """
        return list(pictures_of(read_annotation_file(self.instances), self.images))


def find_annotated(folder: str | Path) -> Annotated:
    """Finds the split `val` of a data set, and its panoptic annotations if there are any.

    Raises:
        AnnotationError: a file or folder of it is missing, or several fit.
    """
    return annotated(find_split(user_path(folder), VAL, "detection"))


def annotated(files: SplitFiles) -> Annotated:
    """The boxes of a split, and its panoptic annotations if they lie beside them in a COCO folder."""
    panoptic = None
    if files.layout == COCO and files.has_splits:
        with contextlib.suppress(AnnotationError):  # there are none
            maps = find_split(files.annotations.parent.parent, files.split, "panoptic")
            assert maps.masks is not None
            panoptic = (maps.annotations, maps.masks)
    return Annotated(files.images, files.source, panoptic)


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
