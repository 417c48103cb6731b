"""How a model is scored while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detr_export.benchmarks.accuracy.evaluation import evaluate
from detr_export.benchmarks.accuracy.scores import Annotated, annotated
from detr_export.data.sources import DataSource
from detr_export.data.splits import CocoSplit, read_files
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.annotations.coco_file import read_annotation_file
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.training.validation import Validation

_METRICS = (("box", "AP"), ("box", "AP50"), ("mask", "AP"), ("panoptic", "PQ"))


def find_validation(source: DataSource, task: str, skip_bad: bool = False, progress: Progress = SILENT) -> Validation | None:
    """The validation split of a data set; None if it has none, and `progress` is told what is missing.

    For the task panoptic the split needs an instances file, too, for AP.

    Args:
        source: where the data is.
        task: "detection" or "panoptic".
        skip_bad: leave bad images and annotations out, from the scores as well.
        progress: is told of the pictures that are checked.

    Raises:
        DatasetError, AnnotationError: as `read_files`.
    """
    try:
        files, boxes = source.validation(task), source.validation("detection")
    except AnnotationError as error:
        progress.stage(f"no validation: {error}")
        return None
    split = read_files(files, skip_bad, progress)
    data = annotated(boxes)
    if split.bad_images or split.bad_annotations:
        data = Annotated(data.images, _without_bad(data, split), data.panoptic)
    return Validation(split, scorer(data), plotter(data))


def scorer(data: Annotated) -> Callable[[Predictor, int | None, Progress], Mapping[str, float]]:
    """A function that scores an open model: box AP and AP50, and for a model that draws masks mask AP and PQ.

    Args:
        data: the annotated pictures.

    Returns:
        `score(predictor, limit, progress)`, which gives the scores by the names `box_AP`, `box_AP50`, `mask_AP` and `PQ`, as
        far as there are annotations for them. It raises what `evaluate` raises.
    """

    def score(predictor: Predictor, limit: int | None, progress: Progress) -> Mapping[str, float]:
        panoptic = data.panoptic if predictor.draws_masks else None
        found = evaluate(predictor, data.images, data.instances, panoptic, limit, progress=progress)
        metrics = found.accuracy.metrics()
        named = {
            name if kind == "panoptic" else f"{kind}_{name}": metrics.get(kind, {}).get(name) for kind, name in _METRICS
        }
        return {name: value for name, value in named.items() if value is not None}

    return score


def plotter(data: Annotated) -> Callable[[Predictor, int | None, Progress, Path], None]:
    """A function `plot(predictor, limit, progress, folder)` that writes the plots of `evaluate` for an open model."""

    def plot(predictor: Predictor, limit: int | None, progress: Progress, folder: Path) -> None:
        evaluate(predictor, data.images, data.instances, None, limit, progress=progress, plots=folder, overwrite=True)

    return plot


def _without_bad(data: Annotated, split: CocoSplit) -> Mapping[str, Any]:
    """The document of the boxes with the images of a split, and of a detection split with its objects alone."""
    document = read_annotation_file(data.instances)
    kept = {record["image_id"] for record in split.records}
    annotations = [item for item in document["annotations"] if item["image_id"] in kept]
    if split.task == "detection":
        annotations = [item for record in split.records for item in record["annotations"]]
    return {**document, "images": [item for item in document["images"] if item["id"] in kept], "annotations": annotations}
