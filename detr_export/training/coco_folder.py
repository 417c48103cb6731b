"""A data set as COCO lays it out on disk: what lies where, and one annotation record for each image.

    ROOT/train2017/*.jpg                        any name that begins with the split's
    ROOT/annotations/instances_train2017.json   for detection
    ROOT/annotations/panoptic_train2017.json    for panoptic segmentation, with its pictures in
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

FORMATS = {"detection": "instances", "panoptic": "panoptic"}  # task to the name that its annotations begin with
_MOST_CLASSES = 1 << 16  # a category id beyond it is a mistake, not a class: the classifier has a row for each


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
        """The classes that there are: `id2label` without its gaps."""
        return {label: name for label, name in self.id2label.items() if name != UNUSED}


def read_split(root: str | Path, split: str, task: str) -> CocoSplit:
    """Reads the annotations of a split; images are not opened.

    Images without annotations stay for detection, where they teach the model to find nothing, and are left out for
    panoptic segmentation, where every pixel should have been annotated. Crowds, and boxes without extent, of which COCO has
    a few, are left out.

    Raises:
        AnnotationError: a folder or file is missing, is there twice, or is not COCO's.
    """
    root = Path(root)
    file = _only(root / "annotations", f"{FORMATS[task]}_{split}*.json", "annotation file")
    name = file.stem.removeprefix(f"{FORMATS[task]}_")
    images = root / name
    masks = root / "annotations" / file.stem if task == "panoptic" else None
    for folder in (images, masks):
        if folder is not None and not folder.is_dir():
            raise AnnotationError(f"{folder} does not exist; {file} is about the files in it")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        categories = {int(item["id"]): str(item["name"]) for item in document["categories"]}
        stuff = tuple(int(item["id"]) for item in document["categories"] if task == "panoptic" and not item["isthing"])
        paths = {item["id"]: images / item["file_name"] for item in document["images"]}
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
    return CocoSplit(task, images, masks, tuple(records), labels, stuff)


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


def _only(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AnnotationError(f"{folder} should hold one {what} named {pattern}; found {names}")
    return found[0]
