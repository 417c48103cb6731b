"""One split of a data set: a record for each image, checked, and the classes.

Classes keep COCO's convention, and DETR's: the class that the model predicts is the category's id, gaps included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.coco import UNUSED
from detr_export.data.checking import Findings, check_records
from detr_export.data.layouts import COCO, FORMATS, SplitFiles, find_split
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.progress import SILENT, Progress

_MOST_CLASSES = 1 << 16  # a category id beyond this is a mistake, not a class: the classifier has a row for each


@dataclass(frozen=True)
class CocoSplit:
    """One split of a data set, for one task."""

    task: str  # "detection" or "panoptic"
    images: Path  # folder
    masks: Path | None  # folder of the panoptic PNGs; None for detection
    records: tuple[Mapping[str, Any], ...]  # "image_id", "image" (a path), "annotations" or "file_name" and "segments_info"
    id2label: Mapping[int, str]  # 0 to the highest category id; ids without a category are "N/A"
    stuff: tuple[int, ...]  # category ids that name no countable things
    bad_images: int = 0  # that were left out
    bad_annotations: int = 0  # objects or segments that were left out, those of bad images included
    layout: str = COCO  # of the files that it was read from

    def __len__(self) -> int:
        return len(self.records)

    @property
    def categories(self) -> dict[int, str]:
        """The classes that exist: `id2label` without its gaps."""
        return {label: name for label, name in self.id2label.items() if name != UNUSED}


def read_split(root: str | Path, split: str, task: str, skip_bad: bool = False, progress: Progress = SILENT) -> CocoSplit:
    """Finds the files of a split, and reads and checks them; arguments as in `find_split`, results as in `read_files`."""
    return read_files(find_split(root, split, task), skip_bad, progress)


def read_files(files: SplitFiles, skip_bad: bool = False, progress: Progress = SILENT) -> CocoSplit:
    """Reads the annotations of a split and checks them against the headers of the pictures.

    For detection, images without annotations stay: they teach the model to find nothing. For panoptic segmentation they are
    left out, since every pixel should have been annotated. Crowds are left out.

    Args:
        files: of the split; those with a folder of PNGs are for panoptic segmentation.
        skip_bad: leave out bad images, with their annotations, and bad annotations; the result says how many.
        progress: is told how many pictures were looked at.

    Raises:
        DatasetError: images or annotations are bad, or with `skip_bad` nothing is left. The message lists the first ten.
        AnnotationError: the file cannot be read, is not COCO's, or there is nothing to train on.
    """
    # The file and its categories.
    file, task = files.annotations, "detection" if files.masks is None else "panoptic"
    document = files.document()
    try:
        items = checks.records(document, "categories", str(file))
        categories = {checks.integer(item, "id", f"categories[{index}]"): item for index, item in enumerate(items)}
        names = {id_: _name(item, f"category {id_}") for id_, item in categories.items()}
        stuff = tuple(
            id_
            for id_, item in categories.items()
            if task == "panoptic" and checks.integer(item, "isthing", f"category {id_}") == 0
        )
    except AnnotationError as error:
        raise AnnotationError(f"{file} is not a COCO {FORMATS[task]} file: {error}") from error
    if not document["images"] or not names:
        raise AnnotationError(f"{file} has no {'categories' if document['images'] else 'images'} to train on")
    if not (min(names) >= 0 and max(names) < _MOST_CLASSES):
        raise AnnotationError(f"{file}: category ids go from {min(names)} to {max(names)}; expected 0 to 65535")

    # Its images and annotations.
    findings = check_records(document, files.images, files.masks, names, progress)
    if findings.problems and not skip_bad:
        raise findings.error(
            file, "correct them, or leave the bad images and annotations out with --skip-bad (skip_bad=True)"
        )
    if not findings.annotations:
        if findings.problems:
            raise findings.error(file, "nothing to train on is left")
        raise AnnotationError(f"{file} has no annotations to train on; expected at least one that is not a crowd")
    records = _panoptic(findings) if task == "panoptic" else _detection(findings)
    labels = {index: names.get(index, UNUSED) for index in range(max(names) + 1)}
    left_out = findings.bad_images, findings.bad_annotations
    return CocoSplit(task, files.images, files.masks, tuple(records), labels, stuff, *left_out, files.layout)


def _name(category: Mapping[str, Any], where: str) -> str:
    name = checks.field(category, "name", where)
    if not isinstance(name, str):
        raise AnnotationError(f"{where}: name is {checks.told(name)}: expected text")
    return name


def _detection(findings: Findings) -> list[dict[str, Any]]:
    objects: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in findings.paths}
    for item in findings.annotations:
        objects[item["image_id"]].append(item)
    return [
        {"image_id": image_id, "image": findings.paths[image_id], "annotations": found}
        for image_id, found in objects.items()
    ]


def _panoptic(findings: Findings) -> list[dict[str, Any]]:
    return [
        {
            "image_id": item["image_id"],
            "image": findings.paths[item["image_id"]],
            "file_name": item["file_name"],
            "segments_info": item["segments_info"],
        }
        for item in findings.annotations
    ]
