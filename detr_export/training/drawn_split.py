"""Writes drawn pictures with exact annotations as one split of a COCO data set."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import InputError, OutputError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.processing.annotations.panoptic import id_to_rgb
from detr_export.runtimes.progress import SILENT, Progress

_JPEG_QUALITY = 92


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture with its COCO annotations."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB
    instances: list[dict[str, Any]]  # entries of an instances file, still without "id" and "image_id"
    segments: list[dict[str, Any]]  # "segments_info" of a panoptic file; unused if the data set has no panoptic categories
    ids: np.ndarray | None = None  # (height, width) int32, the ids of `segments`; None if there are none


@dataclass(frozen=True)
class DrawnData:
    """A data set that can be drawn."""

    name: str  # one word, in the plural
    description: str  # goes into the annotation files
    categories: list[dict[str, Any]]  # of the instances file
    panoptic_categories: list[dict[str, Any]] | None  # of the panoptic file; None: no panoptic file is written
    draw: Callable[[str, int], AnnotatedPicture]  # draws picture `index` of a split


def picture_generator(split: str, index: int) -> np.random.Generator:
    """The random numbers of picture `index` of a split; the same for the same arguments."""
    return np.random.default_rng([zlib.crc32(split.encode()), index])


def write_split(directory: str | Path, images: int, split: str, data: DrawnData, progress: Progress = SILENT) -> Path:
    """Writes a split as COCO lays it out: `SPLIT/*.jpg` and `annotations/instances_SPLIT.json`. If the data has panoptic
    categories, it also writes `annotations/panoptic_SPLIT.json` and `annotations/panoptic_SPLIT/*.png`.

    Args:
        directory: the data set's folder; other splits in it stay.
        images: how many.
        split: its name, which also decides which pictures are drawn.
        data: what is drawn.
        progress: is told how many are written.

    Raises:
        InputError: the number of images or the name of the split is invalid.
        OutputError: the split is there already, or the folder cannot be written.
    """
    # Refuse what cannot be drawn, and a split that is there.
    root = Path(directory)
    check_images(images)
    if not split.isidentifier():
        raise InputError(f"the split is named {split!r}; expected letters, digits and underscores, such as train or val")
    annotations = root / "annotations"
    instances_file, panoptic_file = annotations / f"instances_{split}.json", annotations / f"panoptic_{split}.json"
    for file in (instances_file, panoptic_file):
        if file.exists():
            raise OutputError(f"{file} exists; remove that split first, or give another folder")

    # Draw the pictures and collect their annotations.
    records: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for index in range(images):
        picture = data.draw(split, index)
        image_id = index + 1
        name = f"{image_id:06d}"
        write_atomically(root / split / f"{name}.jpg", jpeg(picture))
        height, width = picture.pixels.shape[:2]
        records.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
        if picture.ids is not None:
            write_atomically(annotations / f"panoptic_{split}" / f"{name}.png", _encoded(id_to_rgb(picture.ids), "PNG"))
            panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": picture.segments})
        for instance in picture.instances:
            instances.append({**instance, "id": len(instances) + 1, "image_id": image_id})
        progress.step(index + 1, images)

    # The annotation files.
    head = {"info": {"description": data.description, "split": split}, "images": records}
    write_json(instances_file, {**head, "annotations": instances, "categories": data.categories})
    if data.panoptic_categories is not None:
        write_json(panoptic_file, {**head, "annotations": panoptic, "categories": data.panoptic_categories})
    return root


def check_images(images: int) -> None:
    """Raises InputError for a number of images that cannot be drawn."""
    if images < 1:
        raise InputError(f"{images} images: expected at least 1")


def jpeg(picture: AnnotatedPicture) -> bytes:
    """The picture as a JPEG file."""
    return _encoded(picture.pixels, "JPEG", quality=_JPEG_QUALITY)


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Writes a document in one move; OutputError when that fails."""
    write_atomically(file, json.dumps(document).encode())


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
