"""The file that holds the results of all pictures: JSON, COCO's results, CSV or Parquet; or one for each picture."""

from __future__ import annotations

import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Optional

from detr_export.runtimes.errors import InputError, OutputError, missing_extra
from detr_export.runtimes.file_batches import ATTENTION, FilePrediction
from detr_export.runtimes.files import replacing, write_atomically, writing
from detr_export.runtimes.results.coco_images import coco_document, read_image_ids
from detr_export.runtimes.results.interop.yolo import yolo_names, yolo_yaml
from detr_export.runtimes.results.rows import Row, csv_of, rows_of
from detr_export.runtimes.sources import Source
from detr_export.runtimes.tasks import DETECTION, TABLES

FORMATS = ("json", "coco", "csv", "parquet", "yolo", "labelme")
_OF_OBJECTS = (DETECTION, ATTENTION, "instances")  # tasks whose results are a list of objects with boxes and scores
_OF_POLYGONS = ("yolo", "labelme")  # formats that hold segments, too


class ResultFile(ABC):
    """Collects results, in the order of the pictures, and writes them at the end."""

    names: tuple[str, ...]  # of the files that it writes

    def path_beside(self, picture: Path) -> Optional[Path]:
        """The file for one picture, by the path of its annotated copy; None where one file holds all results.

        Raises:
            OutputError: those who read the format would not find the file.
        """
        return None

    @abstractmethod
    def add(self, outcome: FilePrediction) -> None:
        """Takes the outcome of one picture, which may be an error. A file for this picture alone is written now."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the files. Raises OutputError."""


def result_file(
    form: str, task: str, sources: Sequence[Source], id2label: Mapping[int, str], annotations: Optional[Path] = None
) -> ResultFile:
    """The file for a format.

    Args:
        form: one of `FORMATS`.
        task: one of `FILE_TASKS`. JSON holds all results, YOLO and LabelMe all but tables, the others objects with boxes.
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
    if form == "yolo":
        return _Yolo(id2label)
    if form == "labelme":
        return _LabelMe()
    kinds: dict[str, type[ResultFile]] = {"json": _Json, "csv": _Csv, "parquet": _Parquet}
    return kinds[form]()


def require_format(form: str, task: str) -> None:
    """Refuses a format that does not exist or does not hold the results of a task. Raises InputError."""
    if form not in FORMATS:
        raise InputError(f"the format is {form!r}; expected one of {', '.join(FORMATS)}")
    if form in _OF_POLYGONS and task != TABLES:
        return
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


class _Yolo(ResultFile):
    """A text file beside each annotated picture, and the names of the classes in the two files where tools look for them."""

    names = ("data.yaml", "classes.txt")

    def __init__(self, id2label: Mapping[int, str]) -> None:
        self._id2label = id2label

    def path_beside(self, picture: Path) -> Optional[Path]:
        if "images" in Path(os.path.abspath(picture)).parts[:-1]:
            raise OutputError(
                f"{picture} lies in a folder named images, and YOLO's tools look for its text file in labels in its place; "
                "name the folder of pictures itself, and another folder for the output (--output)"
            )
        return picture.with_suffix(".txt")

    def add(self, outcome: FilePrediction) -> None:
        if outcome.picture is not None and outcome.result is not None and not isinstance(outcome.result, list):
            write_atomically(outcome.picture.with_suffix(".txt"), outcome.result.to_yolo().encode())

    def write(self, folder: Path) -> None:
        names = "".join(" ".join(name.splitlines()) + "\n" for name in yolo_names(self._id2label))
        write_atomically(folder / "classes.txt", names.encode("utf-8", "backslashreplace"))
        write_atomically(folder / "data.yaml", yolo_yaml(self._id2label).encode())


class _LabelMe(ResultFile):
    """A document beside each annotated picture, which names the original if LabelMe can open that."""

    names = ()

    def path_beside(self, picture: Path) -> Optional[Path]:
        return picture.with_suffix(".json")

    def add(self, outcome: FilePrediction) -> None:
        if outcome.picture is not None and outcome.result is not None and not isinstance(outcome.result, list):
            document = outcome.result.to_labelme(_path_from(outcome.picture, outcome.source))
            _write_json(outcome.picture.with_suffix(".json"), document)

    def write(self, folder: Path) -> None:
        """There is nothing left to write."""


def _path_from(picture: Path, source: Source) -> str:
    """How a file beside the annotated copy names the original; or the copy, if that is on the web or one page of many."""
    if not isinstance(source.image, Path) or source.page is not None:
        return picture.name
    # What `..` leads to is the folder above the real one
    original = os.path.join(os.path.realpath(source.image.parent), source.image.name)
    try:
        return PurePath(os.path.relpath(original, os.path.realpath(picture.parent))).as_posix()
    except ValueError:  # another drive of Windows
        return PurePath(original).as_posix()


def _write_json(path: Path, document: Any) -> None:
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
