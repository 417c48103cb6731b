"""Every class of results compares by value, and comes back from a pickle, a copy and JSON as it was."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pickle
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_export import runtimes
from detr_export.runtimes import (
    Cell,
    Detection,
    Detections,
    InputError,
    Metadata,
    Segment,
    Segmentation,
    Table,
    TensorSpec,
)
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.file_batches import FileJob, FileOptions, FilePrediction
from detr_export.runtimes.metadata import EndToEnd
from detr_export.runtimes.results import __path__ as results_path
from detr_export.runtimes.results.drawing_style import DrawingStyle
from detr_export.runtimes.sources import Sources, find_sources, source_of

PICKLES = range(pickle.HIGHEST_PROTOCOL + 1)

BOX = np.array([1, 2, 11.3, 22], np.float32)
FOUND = Detections(
    np.array([0.7, 0.1], np.float32),
    np.array([3, 1]),
    np.stack([BOX, BOX / 3]),
    ("car", "person"),
    (4, 5),
    np.arange(40).reshape(2, 4, 5) % 3 == 0,
)
IDS = np.array([[1, 1, 7, 0], [1, 3, 7, 7]], np.int32)
SEGMENTS = (
    Segment(1, 1, "cat", 0.9, 3, (0, 0, 2, 2)),
    Segment(3, 1, "cat", 0.123456, 1, (1, 1, 2, 2)),
    Segment(7, 2, "grass", 0.8, 3, (2, 0, 4, 2), True),
)
SEMANTIC = Segmentation(
    "semantic",
    np.array([[0, 2], [2, 2]], np.int32),
    (Segment(0, 0, "N/A", None, 1, (0, 0, 1, 1)), Segment(2, 2, "grass", None, 3, (0, 0, 2, 2))),
)
CELL = Cell((0, 1), (0, 2), BOX, True, False, 0.75)
TABLE = Table(BOX, np.stack([BOX]), np.stack([BOX, BOX + 1]), (CELL, dataclasses.replace(CELL, score=0.1)), (30, 40))
SOURCE = source_of(Path("a.jpg"))
# At least one of each class of results; the first of a class differs from all others of it.
EXAMPLES: dict[str, Any] = {
    "detection": Detection(3, "car", 0.75, (1.0, 2.0, 11.5, 22.0), np.eye(3) > 0),
    "detection without a mask": Detection(3, "car", 0.75, (1.0, 2.0, 11.5, 22.0), None),
    "detections": FOUND,
    "detections without masks": dataclasses.replace(FOUND, masks=None),
    "no detections": dataclasses.replace(FOUND.select(np.array([], int)), masks=None),
    "segment": SEGMENTS[0],
    "panoptic": Segmentation("panoptic", IDS, SEGMENTS),
    "instances": Segmentation("instances", IDS, SEGMENTS),
    "semantic": SEMANTIC,
    "nothing segmented": Segmentation("panoptic", np.zeros((2, 3), np.int32), ()),
    "cell": CELL,
    "table": TABLE,
    "table without cells": Table(BOX, np.zeros((0, 4), np.float32), np.stack([BOX]), (), (30, 40)),
    "prediction": FilePrediction(SOURCE, FOUND, Path("out/a.png"), has_more_pages=True),
    "tables of a file": FilePrediction(SOURCE, [TABLE, TABLE]),
    "failed prediction": FilePrediction(SOURCE, error=ImageError("a.jpg is no picture")),
    "source": SOURCE,
    "sources": Sources((SOURCE,), find_sources([__file__]).skipped),
    "job": FileJob(SOURCE, Path("a.png")),
    "options": FileOptions("detection", 0.5, 1, 0.0, True, frozenset({"cat"}), DrawingStyle(line_width=3)),
    "style": DrawingStyle(font_size=12),
    "metadata": Metadata(
        "detection",
        {0: "cat"},
        {"size": {"height": 4}},
        True,
        end_to_end=EndToEnd("rgb", "matmul", 5),
        ranges={"batch": (1, None)},
    ),
    "tensor": TensorSpec("logits", "float32", (1, 2, 3)),
}


def classes_of_results() -> set[type]:
    """The dataclasses that `runtimes` hands out, and those of the modules that make results and files of them."""
    names = [item.name for item in pkgutil.walk_packages(results_path, "detr_export.runtimes.results.")]
    names = [name for name in names if ".interop." not in name and not name.endswith(".parquet")]  # these make no classes
    modules = [importlib.import_module(name) for name in names]
    modules += [
        importlib.import_module(f"detr_export.runtimes.{name}") for name in ("file_batches", "sources", "tasks", "folder")
    ]
    return {
        value
        for module in (*modules, runtimes)
        for name, value in vars(module).items()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and not name.startswith("_")
        if value.__module__ == module.__name__ or module is runtimes
    }


def test_each_class_has_an_example() -> None:
    assert {type(value) for value in EXAMPLES.values()} == classes_of_results()


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("protocol", PICKLES)
def test_pickles(name: str, protocol: int) -> None:
    value = EXAMPLES[name]
    require_same(pickle.loads(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("name", EXAMPLES)
def test_copies(name: str) -> None:
    value = EXAMPLES[name]
    for again in (copy.copy(value), copy.deepcopy(value), dataclasses.replace(value)):
        require_same(again, value)


def require_same(again: Any, value: Any) -> None:
    """Equal, in both directions and in all that it is made of, also in the types of arrays."""
    assert again == value
    assert value == again
    for field in dataclasses.fields(value):
        one, other = getattr(again, field.name), getattr(value, field.name)
        assert type(one) is type(other)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


@pytest.mark.parametrize("name", EXAMPLES)
def test_differs_in_each_field(name: str) -> None:
    """A field that the comparison forgot would go unnoticed above."""
    value = EXAMPLES[name]
    for field in dataclasses.fields(value):
        if not field.compare or (isinstance(value, DrawingStyle) and field.name != "labels"):
            continue
        changed = copy.copy(value)
        object.__setattr__(changed, field.name, another(getattr(value, field.name)))
        assert changed != value, field.name
        assert value != changed, field.name
    assert value != name
    assert all(value != other for other in EXAMPLES.values() if other is not value)


def another(value: Any) -> Any:
    """Something of the same kind that is not the same."""
    if isinstance(value, np.ndarray):
        return ~value if value.dtype == bool else np.append(value, value.dtype.type(1))
    if isinstance(value, bool):
        return not value
    if isinstance(value, ImageError):
        return ImageError("something else")
    return "another"


@pytest.mark.parametrize("name", [name for name, value in EXAMPLES.items() if hasattr(value, "from_dict")])
def test_goes_through_json(name: str) -> None:
    value = EXAMPLES[name]
    document = json.loads(json.dumps(value.to_dict()))
    assert document == value.to_dict()
    require_same(type(value).from_dict({"image": "a.jpg", **document}), value)


def test_what_has_a_document_reads_it_back() -> None:
    written = {type(value) for value in EXAMPLES.values() if hasattr(value, "to_dict")}
    read = {type(value) for value in EXAMPLES.values() if hasattr(value, "from_dict")}
    assert written - read == {FilePrediction}  # it has the path of a picture, which may be on another machine
    assert read == {Detection, Detections, Segmentation, Cell, Table}


@pytest.mark.parametrize("name", ["detection", "detections", "panoptic", "semantic", "cell", "table"])
def test_a_document_without_a_field_is_refused(name: str) -> None:
    value = EXAMPLES[name]
    document = value.to_dict()
    for key in set(document) - {"segmentation"}:
        for wrong in ({k: v for k, v in document.items() if k != key}, {**document, key: object()}):
            if key in ("name", "is_column_header", "is_projected_row_header") and key in wrong:
                continue  # everything has a text, and is true or false
            with pytest.raises(InputError, match=rf"expected what {type(value).__name__}\.to_dict gives"):
                type(value).from_dict(wrong)


ODD = (None, True, -1, 2**70, 1e400, float("nan"), "text", [], {}, [[1, 2], 3], {"size": [4, 5], "counts": [20]}, "\ud800")


@pytest.mark.parametrize("name", ["detection", "detections", "panoptic", "semantic", "cell", "table"])
def test_any_document_is_read_or_refused(name: str) -> None:
    """With something else in one place, in each of its places: no other error than InputError comes out."""
    value = EXAMPLES[name]
    refused = 0
    for place in places_of(value.to_dict()):
        for odd in ODD:
            document = value.to_dict()
            inside: Any = document
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = odd
            try:
                type(value).from_dict(document)
            except InputError:
                refused += 1
    assert refused > 20


def places_of(document: Any) -> list[tuple[Any, ...]]:
    """The keys that lead to each value of a document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [place for key in keys for place in ((key,), *((key, *rest) for rest in places_of(document[key])))]


SEGMENT = EXAMPLES["panoptic"].to_dict()["segments"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "stuff"}, "kind of segmentation is 'stuff'"),
        ({"image_size": [3, 4]}, "encode the mask at the size"),
        ({"image_size": [10**7, 10**7]}, "the number of pixels of the map"),
        ({"image_size": [-1, 4], "segments": []}, "negative dimensions"),
        ({"segments": [SEGMENT[0], {**SEGMENT[1], "segmentation": SEGMENT[0]["segmentation"]}]}, "has pixels of another"),
        ({"segments": [SEGMENT[0], {**SEGMENT[1], "id": 1}]}, "two segments have one id"),
        ({"segments": [{**SEGMENT[0], "box": [1, 2]}]}, "not enough values"),
        ({"segments": [{**SEGMENT[0], "segmentation": {"size": [2, 4], "counts": [3]}}]}, "add up to 3"),
    ],
)
def test_a_segmentation_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Segmentation.from_dict({**EXAMPLES["panoptic"].to_dict(), **changes})


def test_a_document_from_before_was_fused_is_read() -> None:
    document = EXAMPLES["panoptic"].to_dict()
    for item in document["segments"]:
        del item["was_fused"]
    again = Segmentation.from_dict(document)
    assert np.array_equal(again.map, IDS)
    assert not any(segment.was_fused for segment in again.segments)
