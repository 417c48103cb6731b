"""What a model can be asked for by name: pictures in, one result for each; and what a result looks like."""

from __future__ import annotations

from typing import Any, Optional, Union

from PIL import Image

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.segmentation import KINDS, Segmentation
from detr_export.runtimes.results.tables import REQUIRED, Table, draw_tables

Result = Union[Detections, Segmentation, "list[Table]"]

DETECTION, TABLES = "detection", "tables"
TASKS = (DETECTION, *KINDS, TABLES)  # the names are those of `detr-export predict --task`


def tasks_of(predictor: Predictor) -> tuple[str, ...]:
    """The tasks that a model does, the default first."""
    masks: tuple[str, ...] = KINDS if predictor.draws_masks else ()
    if predictor.metadata.end_to_end is not None:  # it gives the best class of a query only
        masks = tuple(kind for kind in masks if kind != "semantic")
    names = {name.lower() for name in predictor.id2label.values()}
    tables = (TABLES,) if names.issuperset(REQUIRED) else ()
    return (DETECTION, *masks, *tables)


def largest_batch(predictor: Predictor, device: str = "cpu") -> Optional[int]:
    """How many pictures one run of a model may have, on a device that may limit it, too; None for any number."""
    if parse_device(device).builds_engines:
        return 1  # ONNX Runtime builds an engine for one picture
    limits = [predictor.metadata.ranges.get("batch", (1, None))[1]]
    limits += [spec.shape[0] for spec in predictor.session.inputs if isinstance(spec.shape[0], int)]
    return min((limit for limit in limits if limit is not None), default=None)


def run_task(predictor: Predictor, task: str, images: Any, threshold: float, clip: bool = True) -> Any:
    """A `Result` for one image, a list of them for several, as the predictor's methods give.

    Args:
        predictor: the model.
        task: one of `TASKS`.
        images: as in `Predictor.detect`.
        threshold: as in the predictor's method; semantic maps have none.
        clip: as in `Predictor.detect`; segments have boxes of their masks, which need none.

    Raises:
        ArtifactError, ImageError, InputError, BackendError: as in the predictor's method.
    """
    if task == DETECTION:
        return predictor.detect(images, threshold, clip=clip)
    if task == TABLES:
        return predictor.tables(images, threshold, clip=clip)
    if task == "panoptic":
        return predictor.segment_panoptic(images, threshold)
    if task == "instances":
        return predictor.segment_instances(images, threshold)
    return predictor.segment_semantic(images)


def document_of(result: Result) -> dict[str, Any]:
    """A result in types that JSON has, as in predictions.json."""
    return {"tables": [table.to_dict() for table in result]} if isinstance(result, list) else result.to_dict()


def drawing_of(result: Result, picture: Image.Image) -> Image.Image:
    """A copy of the picture with the result drawn on it."""
    if isinstance(result, list):
        return draw_tables(picture, (picture.height, picture.width), result)
    return result.draw(picture)
