"""What is taken for what: a confusion matrix of a detector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator

IOU = 0.5  # at least, of a detection and the annotation that it matches
THRESHOLD = 0.5  # of the scores of the detections that are counted, as `detr-export predict` has it
NOTHING = "(nothing)"


@dataclass(frozen=True)
class ConfusionMatrix:
    """How many annotated objects of each class were detected as which class."""

    names: tuple[str, ...]  # of the N classes
    counts: np.ndarray  # (N + 1, N + 1) int64: rows are annotated, columns predicted; the last of both is nothing

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the rows, and of the columns."""
        return (*self.names, NOTHING)

    def occurring(self) -> ConfusionMatrix:
        """The same without the classes that were neither annotated nor predicted."""
        occurs = (self.counts.sum(axis=0) + self.counts.sum(axis=1))[:-1] > 0
        kept = np.append(np.flatnonzero(occurs), len(self.names))
        return ConfusionMatrix(tuple(np.array(self.names, dtype=object)[occurs]), self.counts[np.ix_(kept, kept)])


def confusion_matrix(evaluator: CocoEvaluator, iou_type: str = "bbox") -> ConfusionMatrix:
    """Counts what the detections with a score above `THRESHOLD` match.

    Matches are those of pycocotools without classes (`useCats = 0`): from the highest score down, each detection takes the
    annotation that it overlaps most, of any class, among those that are free and overlap by an IoU of `IOU` at least. An
    annotation that none takes counts as predicted "nothing", a detection that takes none as annotated "nothing". Crowds, and
    detections in crowds, are not counted.

    Args:
        evaluator: with the detections of all images.
        iou_type: "bbox" or "segm": whether the IoU is that of boxes or masks.

    Raises:
        AnnotationError: the segmentation of an annotation is malformed.
        InputError: the type is not scored.
    """
    scoring = evaluator.matched(iou_type, across_classes=True, above=THRESHOLD)
    index = {category: position for position, category in enumerate(evaluator.categories)}
    nothing = len(index)
    counts = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
    for image in filter(None, scoring.evalImgs):
        matches, ignored = image["dtMatches"][0].astype(int), image["dtIgnore"][0]  # ids of annotations, 0 for none
        for found, match in zip(np.array(image["dtIds"])[~ignored], matches[~ignored], strict=True):
            annotated = index[scoring.cocoGt.anns[match]["category_id"]] if match else nothing
            counts[annotated, index[scoring.cocoDt.anns[found]["category_id"]]] += 1
        for annotation, match, crowd in zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True):
            if not match and not crowd:
                counts[index[scoring.cocoGt.anns[annotation]["category_id"]], nothing] += 1
    return ConfusionMatrix(tuple(evaluator.categories.values()), counts)
