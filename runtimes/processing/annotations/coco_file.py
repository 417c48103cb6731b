"""COCO annotation files, and the check that their categories are those of a model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Union

from detr_export.runtimes.documents import read_document
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.processing.annotations import checks

AnnotationSource = Union[str, os.PathLike, Mapping[str, Any]]

UNUSED = "N/A"  # what the hub's configurations call an id without a class
_PLACEHOLDER = re.compile(r"label_\d+", re.IGNORECASE)  # the name that transformers gives to a class without one
LISTS = ("images", "annotations", "categories")
_NAMED_AT_MOST = 3  # categories that a message lists


def read_annotation_file(source: AnnotationSource) -> Mapping[str, Any]:
    """The document of a COCO annotation file; `source` itself when it is a document already.

    Raises:
        AnnotationError: the file is missing, too large, not JSON, or not an object with `images`, `annotations` and
            `categories`, each a list of objects.
    """
    document, where = (source, "the annotations") if isinstance(source, Mapping) else (_read(source), os.fspath(source))
    for name in LISTS:
        checks.records(checks.record(document, where), name, where)
    return document


def read_lists(file: Union[str, os.PathLike], kind: str) -> Mapping[str, Any]:
    """The document of a COCO annotation file, with lists under `images`, `annotations` and `categories`.

    What is in the lists is not checked, so that whoever reads them can tell all problems at once.

    Args:
        file: its path.
        kind: "instances" or "panoptic", for messages.

    Raises:
        AnnotationError: as `read_annotation_file`.
    """
    document = _read(file)
    try:
        checks.record(document, "the document")
        for name in LISTS:
            found = checks.field(document, name, "the document")
            if not isinstance(found, list):
                raise AnnotationError(f"{name} is a {type(found).__name__}: expected a list")
    except AnnotationError as error:
        raise AnnotationError(f"{os.fspath(file)} is not a COCO {kind} file: {error}") from error
    return document


def _read(file: Union[str, os.PathLike]) -> Any:
    try:
        return read_document(file, AnnotationError, "annotation_bytes")
    except FileNotFoundError as error:
        where = os.fspath(file)
        raise AnnotationError(f"{where} does not exist: expected a COCO annotation file; check the path") from error


def images_by_id(document: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The records under `images`, in rising order of their ids.

    Raises:
        AnnotationError: the id of an image is no integer.
    """
    found = {checks.integer(item, "id", f"images[{index}]"): item for index, item in enumerate(document["images"])}
    return dict(sorted(found.items()))


def category_names(document: Mapping[str, Any]) -> dict[int, str]:
    """The name of each category by its id, in rising order. If two categories have the same name, their ids are added to it.

    Raises:
        AnnotationError: an id is no integer, or a name is no text.
    """
    names: dict[int, str] = {}
    for index, item in enumerate(document["categories"]):
        where = f"categories[{index}]"
        name = checks.field(item, "name", where)
        if not isinstance(name, str):
            raise AnnotationError(f"{where}: name is {checks.told(name)}: expected text")
        names[checks.integer(item, "id", where)] = name
    given = list(names.values())
    return {id_: name if given.count(name) == 1 else f"{name} ({id_})" for id_, name in sorted(names.items())}


def check_categories(id2label: Mapping[int, str], categories: Mapping[int, str]) -> tuple[str, ...]:
    """Checks that a model's label ids mean the categories with these ids. Scoring relies on it.

    Upper and lower case are the same. A model's `LABEL_7` may be any category. `N/A` is a class that the model lacks.

    Args:
        id2label: names of the model's classes.
        categories: names of the annotations' categories.

    Returns:
        Notes for the user: which categories the model lacks. They count as never found.

    Raises:
        AnnotationError: an id has another name in the model, or the model has none of the categories.
    """
    own = {id_: id2label[id_].strip().casefold() for id_ in categories if id_ in id2label}
    own = {id_: name for id_, name in own.items() if name != UNUSED.casefold()}
    others = [
        f"{id_} is {categories[id_]!r} in the annotations and {id2label[id_]!r} in the model"
        for id_, name in own.items()
        if name != categories[id_].strip().casefold() and not _PLACEHOLDER.fullmatch(name)
    ]
    if others:
        raise AnnotationError(
            f"{len(others)} of {len(categories)} categories have another name in the model: {_some(others)}; "
            "give annotations whose category ids are the model's label ids"
        )
    lacking = [f"{id_} {name!r}" for id_, name in categories.items() if id_ not in own]
    if not own:
        raise AnnotationError(
            f"the model has none of the annotations' {len(categories)} categories: {_some(lacking) or 'there are none'}; "
            "give annotations whose category ids are the model's label ids"
        )
    if lacking:
        return (
            f"the model lacks {len(lacking)} of {len(categories)} categories, which count as never found: {_some(lacking)}",
        )
    return ()


def _some(items: list[str]) -> str:
    return ", ".join(items[:_NAMED_AT_MOST]) + (", ..." if len(items) > _NAMED_AT_MOST else "")
