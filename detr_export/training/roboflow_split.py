"""Writes drawn pictures as Roboflow's export in COCO's format lays them out.

    ROOT/train/_annotations.coco.json                the annotations of the split "train"
    ROOT/train/000001_jpg.rf.<32 hex digits>.jpg     its pictures, beside them

What differs from COCO: the splits are train, valid and test; category 0 is the data set itself, has no annotations, and the
classes count from 1; images and annotations count from 0; annotations have boxes alone, an empty `segmentation`, and the
area of the box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_export.data.layouts import ROBOFLOW_FILE
from detr_export.runtimes.errors import InputError, OutputError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.training.drawn_split import DrawnData, check_images, jpeg, write_json

SPLITS = ("train", "valid", "test")
_DATE = "2024-01-01T00:00:00+00:00"  # of everything, since every run writes the same


def write_roboflow_split(
    directory: str | Path, images: int, split: str, data: DrawnData, progress: Progress = SILENT
) -> Path:
    """Writes a split into `directory`/`split`. Its pictures are those that `write_split` draws for that name.

    Args:
        directory: the data set's folder; other splits in it stay.
        images: how many.
        split: "train", "valid" or "test".
        data: what is drawn.
        progress: is told how many are written.

    Raises:
        InputError: the number of images or the name of the split is invalid, or the data has panoptic maps.
        OutputError: the split is there already, or the folder cannot be written.
    """
    # Refuse what this layout has no place for, and a split that is there.
    check_images(images)
    if split not in SPLITS:
        raise InputError(f"the split is named {split!r}; Roboflow's layout has the splits {', '.join(SPLITS)}")
    if data.panoptic_categories is not None:
        raise InputError(f"Roboflow's layout has no panoptic maps, which {data.name} have; write them in COCO's layout")
    root = Path(directory)
    file = root / split / ROBOFLOW_FILE
    if file.exists():
        raise OutputError(f"{file} exists; remove that split first, or give another folder")

    # Draw the pictures and collect their annotations.
    numbers = {category["id"]: number for number, category in enumerate(data.categories, start=1)}
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        picture = data.draw(split, index)
        content = jpeg(picture)
        name = f"{index + 1:06d}"
        stored = f"{name}_jpg.rf.{hashlib.md5(content, usedforsecurity=False).hexdigest()}.jpg"
        write_atomically(root / split / stored, content)
        height, width = picture.pixels.shape[:2]
        about = {"license": 1, "date_captured": _DATE, "extra": {"name": f"{name}.jpg"}}
        records.append({"id": index, "file_name": stored, "height": height, "width": width, **about})
        for instance in picture.instances:
            label = numbers[instance["category_id"]]
            annotations.append({"id": len(annotations), "image_id": index, **_annotation(instance, label)})
        progress.step(index + 1, images)

    # The annotation file.
    parent = {"id": 0, "name": data.name, "supercategory": "none"}
    classes = [{"id": numbers[item["id"]], "name": item["name"], "supercategory": data.name} for item in data.categories]
    write_json(
        file,
        {
            "info": {"year": "2024", "version": "1", "description": data.description, "date_created": _DATE},
            "licenses": [{"id": 1, "url": "https://creativecommons.org/publicdomain/zero/1.0/", "name": "Public Domain"}],
            "categories": [parent, *classes],
            "images": records,
            "annotations": annotations,
        },
    )
    return root


def _annotation(instance: Mapping[str, Any], label: int) -> dict[str, Any]:
    box = instance["bbox"]
    return {"category_id": label, "bbox": box, "area": box[2] * box[3], "segmentation": [], "iscrowd": 0}
