"""Precision over recall for each class, and the score threshold that suits it best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator

RECALLS = np.linspace(0, 1, 101)  # the levels at which COCO reads precision


@dataclass(frozen=True)
class BestThreshold:
    """The score threshold with the highest F1, the harmonic mean of precision and recall, at IoU .50."""

    threshold: float  # detections with a higher score are kept; it lies midway to the next score that is not
    precision: float  # share of the kept detections that are right
    recall: float  # share of the annotations that they find

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclass(frozen=True)
class ClassCurve:
    """How precise one class is at each of `RECALLS`.

    Precision is COCO's: the highest at this recall or beyond. So the mean of a curve is the area below it, and is the AP.
    """

    name: str
    annotations: int  # that are to be found; crowds are not
    precision_50: np.ndarray  # (101,) float64, at IoU .50
    precision: np.ndarray  # (101,) float64, the mean over the IoUs .50, .55, ..., .95
    best: BestThreshold | None  # None if nothing was found at any threshold

    @property
    def ap_50(self) -> float:
        return float(self.precision_50.mean())

    @property
    def ap(self) -> float:
        return float(self.precision.mean())


@dataclass(frozen=True)
class Curves:
    """Those of all classes with annotations, in the order of their category ids, and of all together."""

    classes: tuple[ClassCurve, ...]
    mean: ClassCurve | None  # precision averaged over the classes; the best single threshold. None without a class


def curves(evaluator: CocoEvaluator, iou_type: str = "bbox") -> Curves:
    """Precision and recall from the arrays of pycocotools, with 100 detections of an image as for AP.

    Args:
        evaluator: with the detections of all images.
        iou_type: "bbox" or "segm".

    Raises:
        AnnotationError: the segmentation of an annotation is malformed.
        InputError: the type is not scored.
    """
    scoring = evaluator.matched(iou_type)
    precision = scoring.eval["precision"][..., 0, 0]  # (IoU, recall, class)

    # By class: scores of the detections, which of them are right at IoU .50, and how many annotations there are.
    scores: dict[int, list[np.ndarray]] = {int(category): [] for category in scoring.params.catIds}
    right: dict[int, list[np.ndarray]] = {category: [] for category in scores}
    annotations = dict.fromkeys(scores, 0)
    for image in filter(None, scoring.evalImgs):
        category = int(image["category_id"])
        counted = ~image["dtIgnore"][0]
        scores[category].append(np.array(image["dtScores"])[counted])
        right[category].append(image["dtMatches"][0][counted] > 0)
        annotations[category] += int((image["gtIgnore"] == 0).sum())

    classes = []
    for position, category in enumerate(scores):
        if annotations[category]:
            best = best_threshold(_joined(scores[category]), _joined(right[category]) > 0, annotations[category])
            values = precision[..., position]
            name = evaluator.categories[category]
            classes.append(ClassCurve(name, annotations[category], values[0], values.mean(axis=0), best))
    if not classes:
        return Curves((), None)

    # All classes together. Detections of a class without annotations are wrong.
    everything = [_joined([part for parts in of_class.values() for part in parts]) for of_class in (scores, right)]
    total = sum(annotations.values())
    mean_50, mean = (np.mean([getattr(item, kind) for item in classes], axis=0) for kind in ("precision_50", "precision"))
    best = best_threshold(everything[0], everything[1] > 0, total)
    return Curves(tuple(classes), ClassCurve("(all classes)", total, mean_50, mean, best))


def best_threshold(scores: np.ndarray, right: np.ndarray, annotations: int) -> BestThreshold | None:
    """The threshold with the highest F1, and of several the highest.

    Args:
        scores: of N detections, float (N,), from 0 to 1.
        right: which of them match an annotation, bool (N,). It does not depend on the threshold: a detection is matched
            after those with a higher score.
        annotations: how many objects are to be found, at least 1.

    Returns:
        None if no detection is right.
    """
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    found = np.cumsum(right[order])
    kept = np.arange(1, len(ranked) + 1)
    # F1 = 2 P R / (P + R) = 2 TP / (detections + annotations). Equal scores are kept together.
    last_of_its_score = np.append(ranked[:-1] > ranked[1:], True)
    f1 = np.where(last_of_its_score, 2 * found / (kept + annotations), -1)
    best = int(f1.argmax())
    following = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    threshold = (float(ranked[best]) + float(following)) / 2
    if np.float32(threshold) >= ranked[best]:  # there is no float32 between the two, and scores are compared as such
        threshold = float(following)
    return BestThreshold(threshold, float(found[best] / kept[best]), float(found[best] / annotations))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)
