"""The images behind a COCO results file: ids that are made up, or those of an annotation file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.annotations.coco_file import (
    UNUSED,
    AnnotationSource,
    category_names,
    check_categories,
    images_by_id,
    read_annotation_file,
)


def read_image_ids(annotations: AnnotationSource, files: Sequence[str], id2label: Mapping[int, str]) -> list[int]:
    """The ids that a COCO instances file gives to pictures, by its `file_name`s.

    Args:
        annotations: the file, or its document. Its category ids must be the label ids of the model.
        files: paths of the pictures. Of a path that is not in the file, its end is looked for: `a/b.jpg`, then `b.jpg`.
        id2label: names of the model's classes.

    Returns:
        An id for each picture.

    Raises:
        AnnotationError: the file is malformed, has one `file_name` twice, or has other categories than the model.
        InputError: a picture is not in the file, or two pictures have one id.
    """
    document = read_annotation_file(annotations)
    check_categories(id2label, category_names(document))
    ids: dict[str, int] = {}
    for number, item in images_by_id(document).items():
        name = checks.file_name(item, f"image {number}")
        if name in ids:
            raise AnnotationError(f"images {ids[name]} and {number} both have the file_name {name}; expected it once")
        ids[name] = number
    where = "the annotations" if isinstance(annotations, Mapping) else os.fspath(annotations)
    owners: dict[int, str] = {}
    for file in files:
        found = next((ids[end] for end in _ends(file) if end in ids), None)
        if found is None:
            raise InputError(f"{file} is not among the {len(ids)} images of {where}; name pictures of that file only")
        if found in owners:
            raise InputError(f"{owners[found]} and {file} both are image {found} of {where}; name one of them")
        owners[found] = file
    return list(owners)


def coco_document(images: Iterable[tuple[int, str, tuple[int, int]]], id2label: Mapping[int, str]) -> dict[str, Any]:
    """A COCO instances document without annotations, so that `COCO(file).loadRes(results)` knows images and categories.

    Args:
        images: for each its id, its file name, and its (height, width).
        id2label: names of the model's classes.
    """
    return {
        "info": {"description": "images of detr-export predict"},
        "licenses": [],
        "images": [image_entry(number, file, size) for number, file, size in images],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in sorted(id2label.items()) if name != UNUSED],
    }


def image_entry(number: int, file: str, size: tuple[int, int]) -> dict[str, Any]:
    """One image of that document: its id, its file name, and its (height, width)."""
    return {"id": number, "file_name": file, "height": size[0], "width": size[1]}


def _ends(file: str) -> list[str]:
    """A path, and what is left of it when folders are taken away from its beginning."""
    parts = PurePosixPath(file.replace(os.sep, "/")).parts
    return [file, *("/".join(parts[first:]) for first in range(len(parts)))]
