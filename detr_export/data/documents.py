"""Reading a COCO file, and finding the pictures that it names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from detr_export.runtimes.processing.annotations.checks import leads_out
from detr_export.runtimes.processing.annotations.coco_file import read_lists


def read_document(file: Path, folder: Path, kind: str = "instances") -> Mapping[str, Any]:
    """A document with lists of images, annotations and categories; what is in the lists is not checked.

    Tools write the names of pictures in several ways: from the folder of the export, from a folder on the tool's server, or
    without the sub-folder. A name that leads nowhere is replaced by the path of the one picture in `folder` and the folders
    in it that has this name, if there is exactly one. A name that leads out of `folder` leads nowhere: what it names in
    other folders is not read.

    Args:
        file: a COCO file.
        folder: of the pictures.
        kind: "instances" or "panoptic", for messages.

    Raises:
        AnnotationError: the file cannot be read, or has not these lists.
    """
    document = read_lists(file, kind)
    return {**document, "images": _with_found_pictures(document["images"], folder)}


def pictures_of(document: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """The pictures that a document names, in its order; records without a name are left out."""
    for image in document["images"]:
        name = _name_of(image)
        if name is not None:
            yield folder / name


def _with_found_pictures(images: list[Any], folder: Path) -> list[Any]:
    lost = [index for index, image in enumerate(images) if (name := _name_of(image)) and not _is_there(folder, name)]
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
        elif leads_out(name):
            found[index] = {**images[index], "file_name": _inside(name)}
    return found


def _is_there(folder: Path, name: str) -> bool:
    return not leads_out(name) and os.path.isfile(folder / name)


def _inside(name: str) -> str:
    """What is left of a path if it begins at the folder and stays in it; a check says that nothing is there."""
    parts = [part for part in re.sub(r"^[A-Za-z]:", "", name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "picture"


def _name_of(image: Any) -> str | None:
    name = image.get("file_name") if isinstance(image, Mapping) else None
    return name if isinstance(name, str) and name and "\0" not in name else None
