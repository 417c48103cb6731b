"""Results of some classes only, and names that are no classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detr_export.runtimes import Detections
from detr_export.runtimes.errors import InputError
from detr_export.runtimes.results.classes import require_classes, split_names
from detr_export.runtimes.results.segmentation import make_segmentation

LABELS = {0: "N/A", 1: "person", 2: "car", 3: "cat", 4: "dog", 5: "cup, small"}
FOUND = Detections(
    np.array([0.9, 0.8, 0.7], np.float32),
    np.array([2, 1, 2]),
    np.arange(12, dtype=np.float32).reshape(3, 4),
    ("car", "person", "car"),
    (4, 5),
    np.arange(60).reshape(3, 4, 5) % 7 == 0,
)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["car"], ["car"]),
        (["car,dog", "cat"], ["car", "dog", "cat"]),
        (["car , dog,"], ["car", "dog"]),
        (["cup, small", "dog"], ["cup, small", "dog"]),  # a class with a comma in its name
        (["", ","], []),
    ],
)
def test_names_as_they_are_typed(given: list[str], names: list[str]) -> None:
    assert split_names(given, LABELS) == names


def test_known_names_pass() -> None:
    assert require_classes(["car", "dog", "car"], LABELS) == {"car", "dog"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Cat"], "the model has no class 'Cat'; similar classes are cat, car"),
        (["car", "persn"], "no class 'persn'; similar classes are person"),
        (["zzz"], "no class 'zzz'; its 6 classes are N/A, person, car, cat, dog, cup, small"),
        ([], "no classes were named"),
    ],
)
def test_other_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_classes(names, LABELS)


def test_detections_of_classes() -> None:
    cars = FOUND.of_classes(["car", "dog"])
    assert [*cars] == [item for item in FOUND if item.name == "car"]
    assert cars.masks is not None
    assert (cars.scores.dtype, cars.labels.dtype, cars.masks.dtype) == (np.float32, np.int64, np.bool_)
    assert len(FOUND.of_classes([])) == 0
    assert FOUND.of_classes(["car", "person"]) == FOUND


@pytest.mark.parametrize(("which", "numbers"), [(np.array([True, False, True]), [0, 2]), ([2, 0], [2, 0]), ([], [])])
def test_some_of_the_detections(which: Any, numbers: list[int]) -> None:
    everything = [*FOUND]
    assert [*FOUND.select(np.asarray(which))] == [everything[number] for number in numbers]


def test_segments_of_classes() -> None:
    ids = np.array([[0, 1, 1], [2, 2, 3]])
    info = [{"id": n, "label_id": n, "score": 0.5, "was_fused": False} for n in (1, 2, 3)]
    found = make_segmentation("panoptic", ids, info, LABELS)
    some = found.of_classes({"person", "cat"})
    assert some.segments == (found.segments[0], found.segments[2])
    assert some.map.tolist() == [[0, 1, 1], [0, 0, 3]]
    assert some.map.dtype == np.int32
    assert found.map.tolist() == ids.tolist()
    with pytest.raises(InputError, match="a semantic map gives every pixel a class"):
        make_segmentation("semantic", ids, [], LABELS).of_classes({"person"})
