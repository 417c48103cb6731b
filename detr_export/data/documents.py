"""Reading a COCO file, and finding the pictures that it names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.processing.annotations import checks


def read_document(file: Path, folder: Path, kind: str = "instances") -> Mapping[str, Any]:
    """A document with lists of images, annotations and categories; what is in the lists is not checked.

    Tools write the names of pictures in several ways: from the folder of the export, from a folder on the tool's server, or
    without the sub-folder. A name that leads nowhere is replaced by the path of the one picture in `folder` and the folders
    in it that has this name, if there is exactly one.

    Args:
        file: a COCO file.
        folder: of the pictures.
        kind: "instances" or "panoptic", for messages.

    Raises:
        AnnotationError: the file cannot be read, or has not these lists.
    """
    try:
        document = checks.record(json.loads(file.read_text(encoding="utf-8")), "the document")
        for name in ("images", "annotations", "categories"):
            found = checks.field(document, name, "the document")
            if not isinstance(found, list):
                raise AnnotationError(f"{name} is a {type(found).__name__}: expected a list")
    except OSError as error:
        raise AnnotationError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, AnnotationError) as error:
        raise AnnotationError(f"{file} is not a COCO {kind} file: {error}") from error
    return {**document, "images": _with_found_pictures(document["images"], folder)}


def pictures_of(document: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """The pictures that a document names, in its order; records without a name are left out."""
    for image in document["images"]:
        name = _name_of(image)
        if name is not None:
            yield folder / name


def _with_found_pictures(images: list[Any], folder: Path) -> list[Any]:
    lost = [index for index, image in enumerate(images) if (name := _name_of(image)) and not (folder / name).is_file()]
    if not lost:
        return images
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in folder.rglob("*"):
        by_name[path.name].append(path.relative_to(folder).as_posix())
    found = list(images)
    for index in lost:
        name = str(images[index]["file_name"]).replace("\\", "/")
        places = by_name.get(PurePosixPath(name).name, [])
        if len(places) == 1:
            found[index] = {**images[index], "file_name": places[0]}
    return found


def _name_of(image: Any) -> str | None:
    name = image.get("file_name") if isinstance(image, Mapping) else None
    return name if isinstance(name, str) and name and "\0" not in name else None
