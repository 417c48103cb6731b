"""The file that holds the results of all pictures: JSON, COCO's results, CSV or Parquet."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.errors import InputError, missing_extra
from detr_export.runtimes.file_batches import ATTENTION, FilePrediction
from detr_export.runtimes.files import replacing, write_atomically, writing
from detr_export.runtimes.results.coco_images import coco_document, read_image_ids
from detr_export.runtimes.results.rows import Row, csv_of, rows_of
from detr_export.runtimes.sources import Source
from detr_export.runtimes.tasks import DETECTION

FORMATS = ("json", "coco", "csv", "parquet")
_OF_OBJECTS = (DETECTION, ATTENTION, "instances")  # tasks whose results are a list of objects with boxes and scores


class ResultFile(ABC):
    """Collects results, in the order of the pictures, and writes them at the end."""

    names: tuple[str, ...]  # of the files that it writes

    @abstractmethod
    def add(self, outcome: FilePrediction) -> None:
        """Takes the outcome of one picture, which may be an error."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the files. Raises OutputError."""


def result_file(
    form: str, task: str, sources: Sequence[Source], id2label: Mapping[int, str], annotations: Optional[Path] = None
) -> ResultFile:
    """The file for a format.

    Args:
        form: one of `FORMATS`.
        task: one of `FILE_TASKS`. Only JSON holds maps of segments and tables.
        sources: all pictures, whose outcomes will come in this order.
        id2label: names of the model's classes.
        annotations: for COCO: a file of instances that has the ids of the pictures. Without one, they are counted from 1.

    Raises:
        InputError: there is no such format, it does not hold the results of the task, or `annotations` lacks a picture.
        AnnotationError: `annotations` is malformed, or has other categories than the model.
        BackendError: the extra for Parquet is not installed.
    """
    require_format(form, task)
    if form != "coco" and annotations is not None:
        raise InputError(f"annotations (--annotations) have the ids for the format coco, and the format is {form}")
    if form == "coco":
        ids = list(range(1, len(sources) + 1))
        if annotations is not None:
            ids = read_image_ids(annotations, [source.file for source in sources], id2label)
        return _Coco(ids, None if annotations is not None else id2label)
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("pyarrow", "parquet")
    kinds: dict[str, type[ResultFile]] = {"json": _Json, "csv": _Csv, "parquet": _Parquet}
    return kinds[form]()


def require_format(form: str, task: str) -> None:
    """Refuses a format that does not exist or does not hold the results of a task. Raises InputError."""
    if form not in FORMATS:
        raise InputError(f"the format is {form!r}; expected one of {', '.join(FORMATS)}")
    if form != "json" and task not in _OF_OBJECTS:
        raise InputError(
            f"the format {form} holds objects with boxes, and the results of the task {task} are more than that; "
            "leave format (--format) out"
        )


class _Json(ResultFile):
    names = ("predictions.json",)

    def __init__(self) -> None:
        self._documents: list[dict[str, Any]] = []

    def add(self, outcome: FilePrediction) -> None:
        self._documents.append(outcome.to_dict())

    def write(self, folder: Path) -> None:
        _write_json(folder / self.names[0], self._documents)


class _Coco(ResultFile):
    """A list for pycocotools' `loadRes`; and, if the ids are made up, a file for `COCO` that has them."""

    def __init__(self, ids: list[int], id2label: Optional[Mapping[int, str]]) -> None:
        self.names = ("predictions.coco.json",) if id2label is None else ("predictions.coco.json", "images.coco.json")
        self._ids, self._id2label = iter(ids), id2label
        self._entries: list[dict[str, Any]] = []
        self._images: list[tuple[int, str, tuple[int, int]]] = []

    def add(self, outcome: FilePrediction) -> None:
        number = next(self._ids)
        if outcome.result is None or isinstance(outcome.result, list):
            return
        entries = outcome.result.to_coco(number)
        assert isinstance(entries, list)  # that of a panoptic segmentation was refused
        self._images.append((number, outcome.source.file, outcome.result.image_size))
        self._entries += entries

    def write(self, folder: Path) -> None:
        if self._id2label is not None:
            _write_json(folder / self.names[1], coco_document(self._images, self._id2label))
        _write_json(folder / self.names[0], self._entries)


class _Rows(ResultFile):
    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, outcome: FilePrediction) -> None:
        if outcome.result is not None and not isinstance(outcome.result, list):
            self._rows += rows_of(outcome.source.file, outcome.result)


class _Csv(_Rows):
    names = ("predictions.csv",)

    def write(self, folder: Path) -> None:
        write_atomically(folder / self.names[0], csv_of(self._rows).encode())


class _Parquet(_Rows):
    names = ("predictions.parquet",)

    def write(self, folder: Path) -> None:
        from detr_export.runtimes.results.parquet import write_parquet

        path = folder / self.names[0]
        with replacing(path) as temporary, writing(path):
            write_parquet(self._rows, temporary)


def _write_json(path: Path, document: Any) -> None:
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
