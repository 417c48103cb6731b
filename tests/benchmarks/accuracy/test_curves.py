"""Curves of precision over recall, whose areas are the APs, and thresholds, which are tried out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detr_export.benchmarks.accuracy.curves import RECALLS, best_threshold, curves
from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.runtimes import Detections
from detr_export.runtimes.processing.rle import encode_compressed_rle
from tests.benchmarks.accuracy.test_detection_evaluator import (
    CATEGORIES,
    A,
    B,
    Box,
    annotation,
    detections,
    document,
    filled,
)

IMAGES = 8


def random_case(seed: int) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Annotations, and detections of each image."""
    random = np.random.default_rng(seed)
    items, found = [], {}
    for image_id in range(1, IMAGES + 1):
        guesses: list[tuple[float, int, Box]] = []
        for _ in range(random.integers(0, 6)):
            x, y, width, height = (float(value) for value in random.integers((0, 0, 20, 20), (60, 40, 60, 60)))
            label = int(random.choice(list(CATEGORIES)))
            items.append(annotation(image_id, (x, y, width, height), label, iscrowd=int(random.random() < 0.1)))
            if random.random() < 0.8:
                guesses.append((round(random.beta(4, 2), 2), label, (x + float(random.integers(0, 9)), y, width, height)))
            if random.random() < 0.4:
                guesses.append((round(random.beta(2, 4), 2), 4 - label, (x, y, width, height)))
        found[image_id] = detections(*guesses)
    truth = document(*items, images=IMAGES)
    for item in truth["annotations"]:
        if item["iscrowd"]:
            item["segmentation"] = encode_compressed_rle(filled(item["bbox"]))
    return truth, found


def evaluator_of(
    truth: dict[str, Any], found: dict[int, Detections], iou_types: tuple[str, ...] = ("bbox",)
) -> CocoEvaluator:
    evaluator = CocoEvaluator(truth, iou_types)
    for image_id, item in found.items():
        evaluator.update(image_id, item)
    return evaluator


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_area_below_a_curve_is_the_ap(seed: int, iou_type: str) -> None:
    evaluator = evaluator_of(*random_case(seed), ("bbox", "segm"))
    scores = getattr(evaluator.compute(), iou_type)
    found = curves(evaluator, iou_type)
    assert {item.name: item.ap for item in found.classes} == pytest.approx(scores.per_class, abs=1e-12)
    assert found.mean is not None
    assert found.mean.ap == pytest.approx(scores.metrics.AP, abs=1e-12)
    assert found.mean.ap_50 == pytest.approx(scores.metrics.AP50, abs=1e-12)
    assert 0.05 < found.mean.ap < found.mean.ap_50 < 0.98
    for item in found.classes:
        assert item.precision.shape == item.precision_50.shape == RECALLS.shape
        assert (np.diff(item.precision_50) <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_the_best_that_there_are(seed: int) -> None:
    """All thresholds are tried on the detections themselves: what is kept is matched once more."""
    truth, found = random_case(seed)
    given = curves(evaluator_of(truth, found))
    assert given.mean is not None

    def tried(threshold: float) -> dict[str, tuple[float, float, float]]:
        """F1, precision and recall of each class, and of all."""
        kept = {}
        for image_id, item in found.items():
            above = item.scores > np.float32(threshold)
            names = tuple(np.array(item.names, dtype=object)[above])
            boxes = item.boxes[above]
            kept[image_id] = replace(
                item, scores=item.scores[above], labels=item.labels[above], boxes=boxes, names=names, masks=None
            )
        scoring = evaluator_of(truth, kept).matched("bbox")
        right, wrong, total = Counter[str](), Counter[str](), Counter[str]()
        for image in filter(None, scoring.evalImgs):
            matches, ignored = image["dtMatches"][0] > 0, image["dtIgnore"][0]
            for name in (CATEGORIES[int(image["category_id"])], "(all classes)"):
                right[name] += int((matches & ~ignored).sum())
                wrong[name] += int((~matches & ~ignored).sum())
                total[name] += int((image["gtIgnore"] == 0).sum())
        return {
            name: (
                2 * right[name] / (right[name] + wrong[name] + total[name]),
                right[name] / max(right[name] + wrong[name], 1),
                right[name] / total[name],
            )
            for name in total
        }

    scores = np.unique(np.concatenate([item.scores for item in found.values()]))
    every = [tried(float(score) - 0.005) for score in scores]  # which are hundredths
    for item in (*given.classes, given.mean):
        assert item.best is not None
        now = tried(item.best.threshold)[item.name]
        assert (item.best.f1, item.best.precision, item.best.recall) == pytest.approx(now)
        assert item.best.f1 == pytest.approx(max(result[item.name][0] for result in every))


def test_best_threshold() -> None:
    found = best_threshold(np.array([0.9, 0.3, 0.6]), np.array([True, False, True]), 2)
    assert found is not None
    assert (found.threshold, found.precision, found.recall, found.f1) == (pytest.approx(0.45), 1, 1, 1)
    # Equal scores stay together: one right and one wrong.
    tied = best_threshold(np.array([0.5, 0.5]), np.array([True, False]), 1)
    assert tied is not None
    assert (tied.threshold, tied.precision, tied.recall) == (0.25, 0.5, 1)
    assert best_threshold(np.array([0.5]), np.array([False]), 1) is None
    assert best_threshold(np.zeros(0), np.zeros(0, dtype=bool), 1) is None
    # Neighbours in float32: nothing lies between them.
    low = np.float32(0.5)
    close = best_threshold(np.array([np.nextafter(low, np.float32(1)), low]), np.array([True, False]), 1)
    assert close is not None
    assert np.float32(close.threshold) == low


def test_classes_without_annotations_have_no_curve_but_their_detections_are_wrong() -> None:
    evaluator = CocoEvaluator(document(annotation(1, A)), ("bbox",))
    evaluator.update(1, detections((0.9, 3, B), (0.8, 1, A), masks=False))
    found = curves(evaluator)
    assert [(item.name, item.annotations, item.ap) for item in found.classes] == [("cat", 1, pytest.approx(1))]
    assert found.mean is not None
    assert found.mean.best is not None
    assert (found.mean.best.precision, found.mean.best.recall) == (0.5, 1)


def test_nothing_annotated_and_nothing_found() -> None:
    evaluator = CocoEvaluator(document(), ("bbox",))
    evaluator.update(1, detections((0.9, 1, A), masks=False))
    assert (curves(evaluator).classes, curves(evaluator).mean) == ((), None)
    missed = CocoEvaluator(document(annotation(1, A)), ("bbox",))
    missed.update(1, detections())
    (only,) = curves(missed).classes
    assert (only.ap, only.best) == (0, None)
