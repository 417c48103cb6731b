"""Detections as values: they iterate, compare and pickle."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detr_export.runtimes import Detection, Detections
from detr_export.runtimes.errors import InputError

FOUND = Detections(
    scores=np.array([0.75, 0.5], np.float32),
    labels=np.array([3, 1]),
    boxes=np.array([[1, 2, 11, 22], [0, 0, 7, 5]], np.float32),
    names=("car", "person"),
    image_size=(4, 5),
    masks=np.arange(40).reshape(2, 4, 5) % 3 == 0,
)


def copied(**changes: Any) -> Detections:
    return replace(copy.deepcopy(FOUND), **changes)


def test_iterates_over_objects() -> None:
    assert FOUND.masks is not None
    assert list(FOUND) == [
        Detection(3, "car", 0.75, (1.0, 2.0, 11.0, 22.0), FOUND.masks[0]),
        Detection(1, "person", 0.5, (0.0, 0.0, 7.0, 5.0), FOUND.masks[1]),
    ]
    first = next(iter(copied(masks=None)))
    assert first == Detection(3, "car", 0.75, (1.0, 2.0, 11.0, 22.0), None)
    assert {type(value) for value in (first.label, first.score, *first.box)} == {int, float}
    nothing = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), (), (4, 5))
    assert list(nothing) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": np.array([0.75, 0.25], np.float32)},
        {"scores": np.array([0.75], np.float32)},
        {"labels": np.array([3, 2])},
        {"boxes": FOUND.boxes + 1},
        {"names": ("car", "dog")},
        {"image_size": (5, 4)},
        {"masks": None},
        {"masks": np.zeros((2, 4, 5), bool)},
    ],
)
def test_compares_by_value(changes: dict[str, Any]) -> None:
    assert copied() == FOUND
    assert copied(**changes) != FOUND
    assert next(iter(FOUND)) != FOUND
    assert FOUND != "text"
    with pytest.raises(TypeError, match="unhashable"):
        hash(FOUND)


@pytest.mark.parametrize("found", [FOUND, copied(masks=None)])
def test_pickles(found: Detections) -> None:
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert (again.boxes.dtype, again.labels.dtype) == (np.float32, np.int64)
    assert [*pickle.loads(pickle.dumps([*found]))] == [*found]


@pytest.mark.parametrize("found", [FOUND, copied(masks=None), copied(masks=None).select(np.array([], int))])
def test_goes_through_json(found: Detections) -> None:
    document = json.loads(json.dumps(found.to_dict()))
    assert document == found.to_dict()
    again = Detections.from_dict({"image": "a.jpg", **document})
    assert again == found
    assert (again.scores.dtype, again.labels.dtype, again.boxes.dtype) == (np.float32, np.int64, np.float32)
    assert document["detections"] == [json.loads(json.dumps(item.to_dict())) for item in found]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, with NumPy 2
def test_masks_in_json_are_those_of_pycocotools() -> None:
    assert FOUND.masks is not None
    for entry, mask in zip(FOUND.to_dict()["detections"], FOUND.masks, strict=True):
        assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), mask)
    assert "segmentation" not in copied(masks=None).to_dict()["detections"][0]


DOCUMENT = copied(masks=None).to_dict()


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"detections": []},
        {**DOCUMENT, "image_size": [1]},
        {**DOCUMENT, "detections": [{"label": 1}]},
        {**DOCUMENT, "detections": [{**DOCUMENT["detections"][0], "box": [1, 2]}]},
        {**DOCUMENT, "detections": [{**DOCUMENT["detections"][0], "score": "high"}]},
        {**DOCUMENT, "detections": [{**DOCUMENT["detections"][0], "segmentation": {"size": [4, 5], "counts": [3]}}]},
    ],
)
def test_other_documents_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"these are no detections .*; expected what Detections.to_dict gives"):
        Detections.from_dict(document)
