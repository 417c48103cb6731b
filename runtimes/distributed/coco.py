"""The table as COCO's results, written row by row: a run of any length takes the memory of a few files of its table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detr_export.runtimes.distributed import listing, parts
from detr_export.runtimes.files import replacing, writing
from detr_export.runtimes.result_files import require_format
from detr_export.runtimes.results.coco_images import coco_document, image_entry
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.tasks import DETECTION

RESULTS, IMAGES = "predictions.coco.json", "images.coco.json"
_DIGITS = 6  # of a segment's score: post-processing rounds to them, and float32 has them
_HELD = 16  # files of the table that are in memory: rows come nearly in their order


def write_coco(output: Path, task: str, id2label: Mapping[int, str]) -> None:
    """Writes `predictions.coco.json` and `images.coco.json`, as `predict_files` does: ids count from 1, in the list's order.

    Args:
        output: of a run that has ended.
        task: of the run.
        id2label: names of the model's classes.

    Raises:
        InputError: COCO's list does not hold the results of the task.
        OutputError: a file cannot be written.
    """
    require_format("coco", task)
    document = coco_document([], id2label)
    with _opened(output / IMAGES) as images, _opened(output / RESULTS) as results:
        before, after = json.dumps({**document, "images": ["@"]}).split('"@"')
        images.write(before)
        _write_items(images, (_image(row, file) for row, file in _rows(output) if row["error"] is None))
        images.write(f"{after}\n")
        results.write("[")
        _write_items(results, (entry for row, _ in _rows(output) for entry in _entries(row, task)))
        results.write("]\n")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file that takes its place when it is whole."""
    with replacing(path) as temporary, writing(path), temporary.open("w", encoding="utf-8") as file:
        yield file


def _write_items(file: TextIO, items: Iterable[Mapping[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{json.dumps(item)}")


def _rows(output: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of the table in the order of the list, each with the name of its file."""
    ranges = sorted((*rows, path) for path in parts.part_files(output / parts.FOLDER) for rows in parts.ranges_of(path))

    @lru_cache(maxsize=_HELD)
    def read(path: Path) -> pa.Table:
        return pq.read_table(path)

    for first, stop, path in ranges:
        table = read(path)
        numbers = table["row"].to_numpy()
        begin, end = np.searchsorted(numbers, [first, stop])
        names = listing.read_listing(output / listing.FOLDER, first, stop)
        for row, entry in zip(table.slice(begin, end - begin).to_pylist(), names):
            yield row, entry.file


def _image(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    return image_entry(row["row"] + 1, file, (row["height"], row["width"]))


def _entries(row: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Those of `Detections.to_coco` and `Segmentation.to_coco`, number for number."""
    if row["error"] is not None:
        return []
    boxes = np.array(row["boxes"], dtype=np.float32).reshape(-1, 4)
    scores = np.array(row["scores"], dtype=np.float32)
    size = row["height"], row["width"]
    found = Detections(scores, np.array(row["labels"], dtype=np.int64), boxes, tuple(row["names"]), size)
    entries = found.to_coco(row["row"] + 1)
    if task == DETECTION:
        return entries
    return [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "segmentation": mask,
            "bbox": [int(value) for value in entry["bbox"]],
            "score": round(entry["score"], _DIGITS),
        }
        for entry, mask in zip(entries, row["masks"])
    ]
