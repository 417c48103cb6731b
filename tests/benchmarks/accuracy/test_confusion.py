"""The confusion matrix: a case counted by hand, and random ones against a matcher of a few lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detr_export.benchmarks.accuracy.confusion import IOU, NOTHING, THRESHOLD, confusion_matrix
from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.runtimes import Detections, InputError
from tests.benchmarks.accuracy.test_detection_evaluator import A, B, Box, annotation, detections, document

FAR = (120.0, 80.0, 20.0, 20.0)
NEAR_A = (12.0, 12.0, 40.0, 50.0)


def counts(truth: dict[str, Any], *found: Detections) -> list[list[int]]:
    """Of boxes, which have to be those of masks: all masks here fill their boxes."""
    evaluator = CocoEvaluator(truth)
    for image_id, item in enumerate(found, start=1):
        evaluator.update(image_id, item)
    matrix = confusion_matrix(evaluator)
    assert matrix.labels == ("cat", "dog", NOTHING)
    assert np.array_equal(matrix.counts, confusion_matrix(evaluator, "segm").counts)
    return matrix.counts.tolist()


def test_counted_by_hand() -> None:
    truth = document(annotation(1, A, 1), annotation(1, B, 3), annotation(2, A, 1), annotation(2, B, 3), images=2)
    first = detections((0.9, 1, A), (0.8, 1, B), (0.7, 3, FAR))  # a cat, a dog taken for a cat, a dog out of nothing
    second = detections((0.9, 1, A), (0.6, 1, NEAR_A), (0.5, 3, B))  # a cat, a cat found twice, a dog with too low a score
    assert counts(truth, first, second) == [
        [2, 0, 0],
        [1, 0, 1],
        [1, 1, 0],
    ]


def test_the_higher_score_takes_the_annotation_whatever_its_class() -> None:
    truth = document(annotation(1, A, 1))
    assert counts(truth, detections((0.8, 3, NEAR_A), (0.7, 1, A))) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert counts(truth, detections((0.7, 3, NEAR_A), (0.8, 1, A))) == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_of_several_annotations_the_one_that_overlaps_most() -> None:
    truth = document(annotation(1, NEAR_A, 3), annotation(1, A, 1))
    assert counts(truth, detections((0.9, 1, A))) == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_crowds_are_not_counted() -> None:
    """Neither as missed, nor by what lies in them."""
    crowd = annotation(1, B, 3, iscrowd=1)
    assert counts(document(crowd), detections((0.9, 1, A))) == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    inside = (100.0, 25.0, 20.0, 20.0)
    assert counts(document(annotation(1, A), crowd), detections((0.9, 1, inside), (0.8, 3, inside))) == [
        [0, 0, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_nothing_at_all() -> None:
    assert counts(document(annotation(1, A)), detections()) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert counts(document(), detections()) == [[0, 0, 0]] * 3
    empty = confusion_matrix(CocoEvaluator(document(), ("bbox",))).occurring()
    assert (empty.labels, empty.counts.tolist()) == ((NOTHING,), [[0]])


def test_classes_that_do_not_occur_are_left_out() -> None:
    evaluator = CocoEvaluator(document(annotation(1, A, 3)))
    evaluator.update(1, detections((0.9, 3, A), (0.9, 3, B), (0.4, 1, B)))
    shown = confusion_matrix(evaluator).occurring()
    assert (shown.labels, shown.counts.tolist()) == (("dog", NOTHING), [[1, 0], [1, 0]])


def test_masks_that_are_not_scored() -> None:
    evaluator = CocoEvaluator(document(annotation(1, A)), ("bbox",))
    with pytest.raises(InputError, match="'segm' is not scored here; expected one of bbox"):
        confusion_matrix(evaluator, "segm")


# ---- against a matcher of a few lines -----------------------------------------------------------------------------------


def overlap(first: Box, second: Box) -> float:
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[0] + first[2], second[0] + second[2]), min(first[1] + first[3], second[1] + second[3])
    shared = max(right - left, 0) * max(bottom - top, 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def by_brute_force(objects: list[list[tuple[int, Box]]], found: list[list[tuple[float, int, Box]]]) -> np.ndarray:
    index = {1: 0, 3: 1}
    matrix = np.zeros((3, 3), dtype=int)
    for truth, guesses in zip(objects, found, strict=True):
        free = list(truth)
        for _, label, box in sorted((guess for guess in guesses if guess[0] > THRESHOLD), reverse=True):
            overlaps = [overlap(box, other) for _, other in free]
            if overlaps and max(overlaps) >= IOU:
                category, _ = free.pop(int(np.argmax(overlaps)))
                matrix[index[category], index[label]] += 1
            else:
                matrix[2, index[label]] += 1
        for category, _ in free:
            matrix[index[category], 2] += 1
    return matrix


def random_box(random: np.random.Generator) -> Box:
    """On a coarse grid of floats that float32 holds, and often over another one."""
    x, y, width, height = (float(value) for value in random.integers((0, 0, 20, 20), (60, 40, 60, 60)))
    return x + 0.5, y + 0.25, width, height


@pytest.mark.parametrize("seed", range(12))
def test_random_cases(seed: int) -> None:
    random = np.random.default_rng(seed)
    objects = [[(int(random.choice([1, 3])), random_box(random)) for _ in range(random.integers(0, 7))] for _ in range(8)]
    found = []
    for truth in objects:
        moved = [(label, (x + float(random.integers(-8, 9)), y, width, height)) for label, (x, y, width, height) in truth]
        moved += [(int(random.choice([1, 3])), random_box(random)) for _ in range(random.integers(0, 6))]
        scores = random.permutation(np.arange(1, 64))[: len(moved)] / 64  # no two alike
        found.append([(float(score), label, box) for score, (label, box) in zip(scores, moved, strict=True)])
    items = [annotation(image_id, box, label) for image_id, truth in enumerate(objects, 1) for label, box in truth]
    evaluator = CocoEvaluator(document(*items, images=len(objects)), ("bbox",))
    for image_id, guesses in enumerate(found, 1):
        evaluator.update(image_id, detections(*guesses, masks=False))
    matrix = confusion_matrix(evaluator).counts
    assert matrix.tolist() == by_brute_force(objects, found).tolist()
    assert (matrix[:2, :2] > 0).any()
    assert matrix[2].any()
    assert matrix[:, 2].any()
