"""What a model can be asked for by name, and what a result looks like."""

from __future__ import annotations

from typing import Any, Union

from PIL import Image

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.segmentation import KINDS, Segmentation
from detr_export.runtimes.results.tables import TABLE, Table, draw_tables

Result = Union[Detections, Segmentation, "list[Table]"]

DETECTION, TABLES = "detection", "tables"
TASKS = (DETECTION, *KINDS, TABLES)  # the names are those of `detr-export predict --task`


def require_clip(task: str, clip: bool) -> None:
    """Refuses `clip=False` for a task whose boxes are those of masks. Raises InputError."""
    if not clip and task in KINDS:
        raise InputError(
            f"the boxes of the task {task} are those of its masks, which end at the edges; leave clip (--no-clip) out"
        )


def require_filter(task: str) -> None:
    """Refuses a choice of classes for a task whose results need all of them. Raises InputError."""
    if task in (TABLES, "semantic"):
        what = "a grid is put together from all classes" if task == TABLES else "a semantic map gives every pixel a class"
        raise InputError(f"{what}; leave classes (--classes) out with the task {task}")


def document_of(result: Result) -> dict[str, Any]:
    """A result in types that JSON has, as in predictions.json."""
    return {"tables": [table.to_dict() for table in result]} if isinstance(result, list) else result.to_dict()


def names_of(result: Result) -> list[str]:
    """The classes of the objects in a result; `table` for each table."""
    if isinstance(result, list):
        return [TABLE] * len(result)
    return list(result.names) if isinstance(result, Detections) else [segment.name for segment in result.segments]


def drawing_of(result: Result, picture: Image.Image, style: DrawingStyle = PLAIN) -> Image.Image:
    """A copy of the picture with the result drawn on it."""
    if isinstance(result, list):
        return draw_tables(picture, (picture.height, picture.width), result, style)
    return result.draw(picture, style)
