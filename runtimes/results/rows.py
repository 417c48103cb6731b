"""Results as the rows of one table: a row for each object of each picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, Union

import numpy as np

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.results.columns import COLUMNS
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.segmentation import Segmentation

__all__ = ["COLUMNS", "Row", "csv_of", "rows_of"]

Row = tuple[Any, ...]  # str, int, str, and five numpy.float32


def rows_of(file: str, result: Union[Detections, Segmentation]) -> list[Row]:
    """A row of `COLUMNS` for each object: the file, the class's id and name, the score, and the box in pixels.

    Args:
        file: what the rows call the picture. What is no valid Unicode in it is spelled with backslashes.
        result: detections or instances. Masks are left out.

    Raises:
        InputError: a panoptic or semantic segmentation: what it says is in its map.
    """
    if isinstance(result, Segmentation) and result.kind != "instances":
        raise InputError(f"a {result.kind} segmentation is a map of pixels; rows can hold detections and instances only")
    name = file.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(result, Detections):
        found = zip(result.labels.tolist(), result.names, result.scores, result.boxes)
        return [(name, label, class_name, score, *box) for label, class_name, score, box in found]
    return [
        (name, item.label, item.name, np.float32(item.score or 0.0), *np.array(item.box, dtype=np.float32))
        for item in result.segments
    ]


def csv_of(rows: Iterable[Row]) -> str:
    """Rows as CSV, with a line of the columns' names. Numbers have the digits that give the same float32 again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([str(value) for value in row] for row in rows)
    return text.getvalue()
