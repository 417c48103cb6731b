"""A data set as COCO lays it out on disk: where its files are, and one annotation record for each image.

    ROOT/train2017/*.jpg                        the images of the split "train": the name may go on after it
    ROOT/annotations/instances_train2017.json   for detection
    ROOT/annotations/panoptic_train2017.json    for panoptic segmentation, with its PNGs in
    ROOT/annotations/panoptic_train2017/*.png

Classes keep COCO's convention, and DETR's: the class that the model predicts is the category's id, gaps included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.coco import UNUSED
from detr_export.runtimes.errors import AnnotationError

FORMATS = {"detection": "instances", "panoptic": "panoptic"}  # by task, what the names of its annotation files begin with
_MOST_CLASSES = 1 << 16  # a category id beyond this is a mistake, not a class: the classifier has a row for each


@dataclass(frozen=True)
class SplitFiles:
    """Where one split of a data set is, for one task."""

    images: Path  # folder
    annotations: Path  # file
    masks: Path | None  # folder of the panoptic PNGs; None for detection


@dataclass(frozen=True)
class CocoSplit:
    """One split of a data set, for one task."""

    task: str  # "detection" or "panoptic"
    images: Path  # folder
    masks: Path | None  # folder of the panoptic PNGs; None for detection
    records: tuple[Mapping[str, Any], ...]  # "image_id", "image" (a path), "annotations" or "file_name" and "segments_info"
    id2label: Mapping[int, str]  # 0 to the highest category id; ids without a category are "N/A"
    stuff: tuple[int, ...]  # category ids that name no countable things

    def __len__(self) -> int:
        return len(self.records)

    @property
    def categories(self) -> dict[int, str]:
        """The classes that exist: `id2label` without its gaps."""
        return {label: name for label, name in self.id2label.items() if name != UNUSED}


def find_split(root: str | Path, split: str, task: str) -> SplitFiles:
    """Finds the files of a split; none of them is read.

    Args:
        root: the folder of the data set.
        split: the beginning of the split's name: "val" finds val and val2017.
        task: "detection" or "panoptic".

    Raises:
        AnnotationError: a folder or file is missing, or several annotation files fit.
    """
    folder = Path(root) / "annotations"
    pattern = f"{FORMATS[task]}_{split}*.json"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AnnotationError(f"{folder} should hold one annotation file named {pattern}; found {names}")
    file = found[0]
    images = Path(root) / file.stem.removeprefix(f"{FORMATS[task]}_")
    masks = folder / file.stem if task == "panoptic" else None
    for needed, what in ((images, "images"), (masks, "PNGs")):
        if needed is not None and not needed.is_dir():
            raise AnnotationError(f"{needed} does not exist; expected a folder with the {what} of {file}")
    return SplitFiles(images, file, masks)


def read_split(root: str | Path, split: str, task: str) -> CocoSplit:
    """Reads the annotations of a split; images are not opened.

    For detection, images without annotations stay: they teach the model to find nothing. For panoptic segmentation they are
    left out, since every pixel should have been annotated. Crowds are left out, and so are boxes without width or height,
    of which COCO has a few.

    Raises:
        AnnotationError: as `find_split`, or the file is not COCO's.
    """
    files = find_split(root, split, task)
    file = files.annotations
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        categories = {int(item["id"]): str(item["name"]) for item in document["categories"]}
        stuff = tuple(int(item["id"]) for item in document["categories"] if task == "panoptic" and not item["isthing"])
        paths = {item["id"]: files.images / item["file_name"] for item in document["images"]}
        records = _panoptic(document, paths) if task == "panoptic" else _detection(document, paths)
    except OSError as error:
        raise AnnotationError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(f"{file} is not a COCO {FORMATS[task]} file: {error!r:.200}") from error
    if not records or not categories:
        raise AnnotationError(f"{file} has no {'categories' if records else 'images'} to train on")
    if not (min(categories) >= 0 and max(categories) < _MOST_CLASSES):
        raise AnnotationError(f"{file}: category ids go from {min(categories)} to {max(categories)}; expected 0 to 65535")
    labels = {index: categories.get(index, UNUSED) for index in range(max(categories) + 1)}
    return CocoSplit(task, files.images, files.masks, tuple(records), labels, stuff)


def _detection(document: Mapping[str, Any], paths: Mapping[int, Path]) -> list[dict[str, Any]]:
    objects: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in paths}
    for item in document["annotations"]:
        if not item.get("iscrowd", 0) and min(item["bbox"][2:]) > 0:
            objects[item["image_id"]].append(item)
    return [{"image_id": image_id, "image": paths[image_id], "annotations": found} for image_id, found in objects.items()]


def _panoptic(document: Mapping[str, Any], paths: Mapping[int, Path]) -> list[dict[str, Any]]:
    records = []
    for item in document["annotations"]:
        segments = [part for part in item["segments_info"] if not part.get("iscrowd", 0) and min(part["bbox"][2:]) > 0]
        image_id = item["image_id"]
        if segments:
            records.append(
                {"image_id": image_id, "image": paths[image_id], "file_name": item["file_name"], "segments_info": segments}
            )
    return records
