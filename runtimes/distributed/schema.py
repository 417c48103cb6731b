"""The columns of the table of results, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import pyarrow as pa

from detr_export.runtimes.processing.rle import encode_compressed_rle
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.tasks import DETECTION, Result

VERSION = 1  # raised when a reader of the older columns would misread the table

_MASK = pa.struct([pa.field("size", pa.list_(pa.int32(), 2)), pa.field("counts", pa.string())])
_COLUMNS = (
    pa.field("row", pa.int64(), nullable=False),  # number of the picture in the list, from 0
    pa.field("path", pa.string(), nullable=False),  # as it was named or found; TABLE#ROW of a picture in a table
    pa.field("width", pa.int32()),  # of the upright picture, pixels; null with an error
    pa.field("height", pa.int32()),
    pa.field("model", pa.string(), nullable=False),  # SHA-256 of the model's file
    pa.field("labels", pa.list_(pa.int64())),  # ids of the classes; this and the next are null with an error
    pa.field("names", pa.list_(pa.string())),  # of the classes
    pa.field("scores", pa.list_(pa.float32())),
    pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # (x_min, y_min, x_max, y_max), pixels of the upright picture
)
_MASKS = pa.field("masks", pa.list_(_MASK))  # of tasks with segments: COCO's compressed run-length encoding
_ERROR = pa.field("error", pa.string())  # why there is no result; null if there is one


def schema_of(task: str) -> pa.Schema:
    """The columns for a task: `masks` are there if it has segments."""
    masks = () if task == DETECTION else (_MASKS,)
    return pa.schema([*_COLUMNS, *masks, _ERROR], metadata={"detr_export.schema": str(VERSION)})


def row_of(number: int, path: str, model: str, result: Optional[Result], error: Optional[str]) -> dict[str, Any]:
    """One row of the table.

    Args:
        number: of the picture in the list, from 0.
        path: what the table calls the picture.
        model: digest of the model.
        result: detections, or a panoptic or instance segmentation; None with an error.
        error: the text of the error; None with a result.
    """
    row: dict[str, Any] = {"row": number, "path": path, "model": model, "error": error}
    if result is None or isinstance(result, list):
        return row
    row["height"], row["width"] = result.image_size
    if isinstance(result, Detections):
        row |= {"labels": result.labels, "names": list(result.names), "scores": result.scores, "boxes": [*result.boxes]}
        return row
    segments = result.segments
    row["labels"] = [segment.label for segment in segments]
    row["names"] = [segment.name for segment in segments]
    row["scores"] = np.array([segment.score for segment in segments], dtype=np.float32)
    row["boxes"] = [np.array(segment.box, dtype=np.float32) for segment in segments]
    row["masks"] = [encode_compressed_rle(result.mask(segment)) for segment in segments]
    return row


def table_of(rows: Sequence[Mapping[str, Any]], task: str) -> pa.Table:
    """Rows of `row_of` as a table of `schema_of`. A column that a row lacks is null."""
    schema = schema_of(task)
    return pa.Table.from_arrays([pa.array([row.get(f.name) for row in rows], f.type) for f in schema], schema=schema)
