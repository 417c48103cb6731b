"""Panoptic quality (Kirillov et al. 2019, section 4), with the numbers of COCO's panopticapi.

A predicted segment and an annotated one of the same class match when their IoU is above one half. Pixels that are annotated
as nothing (VOID, id 0) count neither for nor against a prediction. PQ of a class is the sum of the IoUs of its matches,
divided by ``tp + fp / 2 + fn / 2``. It is the product of SQ (the mean IoU of the matches) and RQ (their F1 score). A crowd
is never matched and never missed. A prediction of which more than half lies on VOID and on the crowd of its class is no
false positive.

Two things differ from panopticapi, on purpose. The area of an annotated segment is counted in the PNG, where panopticapi
believes the file (in COCO's files they are the same). Predictions of a class that the annotations lack are left out, where
panopticapi stops with an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.annotations.coco_file import (
    AnnotationSource,
    category_names,
    images_by_id,
    read_annotation_file,
)
from detr_export.runtimes.processing.annotations.panoptic import panoptic_path, read_segment_ids
from detr_export.runtimes.results.segmentation import Segmentation

VOID = 0
ID_LIMIT = 256**3  # ids fit into the three bytes of a pixel
MATCH_IOU = 0.5  # above it no segment has two matches
IGNORED_SHARE = 0.5  # a prediction with a larger share on VOID and crowd is no false positive


@dataclass(frozen=True)
class PanopticAverage:
    """Means over the classes that occur in the annotations or the predictions; None where no class occurs."""

    pq: float | None
    sq: float | None
    rq: float | None
    classes: int  # that occur


@dataclass(frozen=True)
class PanopticClass:
    """One class; the qualities are None where it does not occur."""

    name: str
    isthing: bool
    pq: float | None
    sq: float | None  # 0 without a match
    rq: float | None
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class PanopticScores:
    """The result of a `PanopticEvaluator`; qualities are in [0, 1]."""

    all: PanopticAverage
    things: PanopticAverage
    stuff: PanopticAverage
    per_class: tuple[PanopticClass, ...]  # in the order of the category ids
    images: int  # that were scored


class PanopticEvaluator:
    """Collects segmentations and scores them; only counts are kept.

    Args:
        annotations: the path of a COCO panoptic file, or its document.
        folder: the folder of its PNGs.

    Attributes:
        images: record of each image by its id.
        categories: name of each category by its id.

    Raises:
        AnnotationError: the file is missing or malformed.
    """

    def __init__(self, annotations: AnnotationSource, folder: str | os.PathLike[str]) -> None:
        document = read_annotation_file(annotations)
        self.images = images_by_id(document)
        self.categories = category_names(document)
        things = {
            item["id"]: checks.integer(item, "isthing", f"categories[{index}]") == 1
            for index, item in enumerate(document["categories"])
        }
        self._folder = folder
        self._annotations: dict[int, Mapping[str, Any]] = {}
        for index, item in enumerate(document["annotations"]):
            checks.records(item, "segments_info", f"annotations[{index}]")
            image_id = checks.integer(item, "image_id", f"annotations[{index}]")
            if image_id in self._annotations:
                raise AnnotationError(
                    f"annotations[{index}]: image {image_id} has one already; expected one record for each image"
                )
            self._annotations[image_id] = item
        self._seen: set[int] = set()
        self._scored = 0
        self._is_thing = np.array([things[id_] for id_ in self.categories], dtype=bool)
        self._position = {id_: index for index, id_ in enumerate(self.categories)}
        self._iou = np.zeros(len(self.categories))
        self._tp, self._fp, self._fn = (np.zeros(len(self.categories), dtype=np.int64) for _ in range(3))

    def require_images(self, image_ids: Iterable[int]) -> None:
        """Refuses images that `update` would refuse later.

        Raises:
            InputError: an image has no annotation.
            AnnotationError: an image has no PNG.
        """
        for image_id in image_ids:
            path = self._path(image_id)
            if not os.path.isfile(path):
                raise AnnotationError(
                    f"image {image_id}: {path} does not exist: expected its panoptic PNG; check the folder"
                )

    def update(self, image_id: int, segmentation: Segmentation) -> None:
        """Adds the panoptic segmentation of one image.

        Raises:
            InputError: the image has no annotation or was added before, or the segmentation is not panoptic.
            AnnotationError: the PNG is missing, damaged or of another size than the segmentation, or the record malformed.
        """
        if segmentation.kind != "panoptic":
            raise InputError(f"the segmentation of image {image_id} is of kind {segmentation.kind}; expected panoptic")
        path = self._path(image_id)
        if image_id in self._seen:
            raise InputError(f"image {image_id} was given before; give every image once")
        gt_ids = read_segment_ids(path, segmentation.image_size, f"image {image_id}")
        found = [{"id": item.id, "category_id": item.label} for item in segmentation.segments]
        self.add(gt_ids, self._annotations[image_id]["segments_info"], segmentation.map, found, f"image {image_id}")
        self._seen.add(image_id)

    def add(
        self,
        gt_ids: np.ndarray,
        gt_segments: Sequence[Mapping[str, Any]],
        pred_ids: np.ndarray,
        pred_segments: Sequence[Mapping[str, Any]],
        image: str = "the image",
    ) -> None:
        """Adds one image.

        Args:
            gt_ids: int (height, width), segment ids from 1, 0 for VOID.
            gt_segments: ``id``, ``category_id`` and optionally ``iscrowd`` of each annotated segment.
            pred_ids: int (height, width), segment ids from 1, 0 for none.
            pred_segments: ``id`` and ``category_id`` of each predicted segment.
            image: what error messages call the image.

        Raises:
            InputError: the maps differ in size, or the predicted segments are not those of their map.
            AnnotationError: an annotated segment is malformed or of an unknown category.
        """
        if gt_ids.shape != pred_ids.shape or gt_ids.ndim != 2:
            raise InputError(f"{image}: the maps are {gt_ids.shape} and {pred_ids.shape}; expected one (height, width)")
        # Check the segments of both sides, and that the predicted ones are those of their map.
        gt_rows = self._rows(gt_segments, f"{image}, annotation")
        if any(category not in self._position for category in gt_rows.values()):
            raise AnnotationError(f"{image}: a segment has a category_id that is not among the categories; correct the file")
        crowds = {item["id"] for item in gt_segments if "iscrowd" in item and checks.crowd_flag(item, image)}
        pred_rows = self._rows(pred_segments, f"{image}, prediction")
        joint, pixels = np.unique(gt_ids.astype(np.int64) * ID_LIMIT + pred_ids, return_counts=True)
        present = set((joint % ID_LIMIT).tolist())
        if present - {VOID} != set(pred_rows) or pred_ids.min(initial=0) < 0 or pred_ids.max(initial=0) >= ID_LIMIT:
            raise InputError(f"{image}: the ids in the predicted map are not those of its segments")

        pred_rows = {id_: category for id_, category in pred_rows.items() if category in self._position}
        # Count the pixels that segments share. After the annotated segments come VOID and, last, ids that only the PNG has.
        overlap = np.zeros((len(gt_rows) + 2, len(pred_rows) + 1), dtype=np.int64)
        row_of = {VOID: len(gt_rows)} | {id_: row for row, id_ in enumerate(gt_rows)}
        column_of = {id_: column for column, id_ in enumerate(pred_rows)}
        rows = [row_of.get(id_, len(gt_rows) + 1) for id_ in (joint // ID_LIMIT).tolist()]
        columns = [column_of.get(id_, len(pred_rows)) for id_ in (joint % ID_LIMIT).tolist()]
        np.add.at(overlap, (rows, columns), pixels)
        gt_classes, pred_classes = (
            np.array([self._position[category] for category in found.values()], dtype=np.intp)
            for found in (gt_rows, pred_rows)
        )
        self._count(overlap, gt_classes, pred_classes, np.array([id_ in crowds for id_ in gt_rows], dtype=bool))
        self._scored += 1

    def _count(self, overlap: np.ndarray, gt_classes: np.ndarray, pred_classes: np.ndarray, is_crowd: np.ndarray) -> None:
        """Adds to the counts of the classes.

        Args:
            overlap: int64 (G + 2, P + 1), pixels; row G is VOID.
            gt_classes, pred_classes: intp (G,) and (P,), positions of classes.
            is_crowd: bool (G,).
        """
        # Match: at most one prediction overlaps an annotated segment by more than a half.
        shared, void = overlap[: len(gt_classes), :-1], overlap[len(gt_classes), :-1]
        gt_area, pred_area = overlap[: len(gt_classes)].sum(axis=1), overlap[:, :-1].sum(axis=0)
        union = gt_area[:, None] + pred_area - shared - void
        iou = np.divide(shared, union, out=np.zeros(shared.shape), where=shared > 0)
        matched = (iou > MATCH_IOU) & (gt_classes[:, None] == pred_classes) & ~is_crowd[:, None]
        of_match = gt_classes[np.nonzero(matched)[0]]
        np.add.at(self._iou, of_match, iou[matched])
        np.add.at(self._tp, of_match, 1)
        np.add.at(self._fn, gt_classes[~matched.any(axis=1) & ~is_crowd], 1)

        # What is left of the predictions is false, unless most of it lies where nothing counts.
        crowd_of = {int(gt_classes[row]): row for row in np.flatnonzero(is_crowd)}  # the last of several, as in panopticapi
        ignored = void.copy()
        for column, position in enumerate(pred_classes.tolist()):
            if position in crowd_of:
                ignored[column] += shared[crowd_of[position], column]
        is_false = ~matched.any(axis=0) & (ignored <= IGNORED_SHARE * pred_area)
        np.add.at(self._fp, pred_classes[is_false], 1)

    def compute(self) -> PanopticScores:
        """Scores the images that were added."""
        # The qualities of each class, 0 where they are not defined.
        weight = self._tp + (self._fp + self._fn) / 2
        occurs = weight > 0
        zeros = np.zeros(len(weight))
        pq = np.divide(self._iou, weight, out=zeros.copy(), where=occurs)
        sq = np.divide(self._iou, self._tp, out=zeros.copy(), where=self._tp > 0)
        rq = np.divide(self._tp, weight, out=zeros.copy(), where=occurs)

        def average(chosen: np.ndarray) -> PanopticAverage:
            if not chosen.any():
                return PanopticAverage(None, None, None, 0)
            return PanopticAverage(
                float(pq[chosen].mean()), float(sq[chosen].mean()), float(rq[chosen].mean()), int(chosen.sum())
            )

        # One row for each class, and the means over classes that occur.
        per_class = tuple(
            PanopticClass(
                name=name,
                isthing=bool(self._is_thing[index]),
                pq=float(pq[index]) if occurs[index] else None,
                sq=float(sq[index]) if occurs[index] else None,
                rq=float(rq[index]) if occurs[index] else None,
                tp=int(self._tp[index]),
                fp=int(self._fp[index]),
                fn=int(self._fn[index]),
            )
            for index, name in enumerate(self.categories.values())
        )
        things, stuff = occurs & self._is_thing, occurs & ~self._is_thing
        return PanopticScores(average(occurs), average(things), average(stuff), per_class, self._scored)

    def _path(self, image_id: int) -> Path:
        if image_id not in self._annotations:
            raise InputError(
                f"image {image_id} is not among the {len(self._annotations)} images of the panoptic annotations"
            )
        return panoptic_path(self._annotations[image_id], f"image {image_id}", self._folder)

    @staticmethod
    def _rows(segments: Sequence[Mapping[str, Any]], where: str) -> dict[int, int]:
        """The category of each segment by its id, in their order."""
        rows = {checks.integer(item, "id", where): checks.integer(item, "category_id", where) for item in segments}
        if len(rows) < len(segments) or VOID in rows:
            raise InputError(f"{where}: two segments have one id, or one has {VOID}, which is VOID")
        return rows
