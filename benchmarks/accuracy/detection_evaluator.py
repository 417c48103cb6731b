"""Average precision and recall of boxes and masks, as COCO defines them and pycocotools computes them.

Predictions are added image by image and stored compactly: boxes as arrays, masks run-length encoded. Only the images that
were added are scored, also those in which nothing was found. A label of the model is a category id of the annotations, as in
DETR; detections whose label is no category are left out.

pycocotools gets copies of the annotations with two changes. They are numbered from 1, because it takes a match with
annotation 0 for no match. An annotation without `iscrowd` is no crowd.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from detr_export.runtimes.errors import AnnotationError, InputError, missing_extra
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.annotations.coco_file import (
    AnnotationSource,
    category_names,
    images_by_id,
    read_annotation_file,
)
from detr_export.runtimes.processing.rle import checked_counts, compress_counts, encode_compressed_rle
from detr_export.runtimes.results.detections import Detections

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError as error:
    raise missing_extra("pycocotools", "bench") from error

IOU_TYPES = ("bbox", "segm")


@dataclass(frozen=True)
class AverageMetrics:
    """COCO's twelve numbers in their usual order, each in [0, 1]; None where there is no annotation to compute it from."""

    AP: float | None  # precision, averaged over recall, classes and IoU thresholds .50, .55, ..., .95
    AP50: float | None  # at IoU .50
    AP75: float | None  # at IoU .75
    APs: float | None  # of objects smaller than 32 x 32 pixels
    APm: float | None  # of objects between the two
    APl: float | None  # of objects larger than 96 x 96 pixels
    AR1: float | None  # recall with 1 detection for each image and class, averaged over classes and IoU thresholds
    AR10: float | None  # with 10
    AR100: float | None  # with 100
    ARs: float | None
    ARm: float | None
    ARl: float | None


@dataclass(frozen=True)
class TypeScores:
    """The scores of boxes, or of masks."""

    metrics: AverageMetrics
    per_class: Mapping[str, float | None]  # AP by the name of the category; None without an annotation of it


@dataclass(frozen=True)
class CocoScores:
    """The result of a `CocoEvaluator`; None for a type that was not asked for, or that the annotations lack."""

    bbox: TypeScores | None
    segm: TypeScores | None
    images: int  # that were scored


class CocoEvaluator:
    """Collects detections and scores them.

    Args:
        annotations: the path of a COCO instances file, its document, or a pycocotools `COCO`. It is not changed.
        iou_types: "bbox", "segm" or both. Masks are not scored when no annotation has a `segmentation`; then the attribute
            `iou_types` lacks "segm".

    Attributes:
        images: record of each image by its id.
        categories: name of each category by its id.

    Raises:
        AnnotationError: the file is missing or malformed.
        InputError: an iou type is unknown.
    """

    def __init__(self, annotations: AnnotationSource | COCO, iou_types: Sequence[str] = IOU_TYPES) -> None:
        unknown = [name for name in iou_types if name not in IOU_TYPES]
        if unknown or not iou_types:
            raise InputError(f"iou_types are {tuple(iou_types)}; expected some of {', '.join(IOU_TYPES)}")
        document = read_annotation_file(annotations.dataset if isinstance(annotations, COCO) else annotations)
        self.images = images_by_id(document)
        for image_id, record in self.images.items():
            if "height" in record or "width" in record:
                checks.image_size(record, f"image {image_id}")
        self.categories = category_names(document)
        self._annotations: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in self.images}
        for index, item in enumerate(document["annotations"]):
            copy = _checked(item, f"annotations[{index}]")
            if copy["image_id"] in self.images:
                self._annotations[copy["image_id"]].append({**copy, "id": index + 1})
        has_masks = [bool(item.get("segmentation")) for item in document["annotations"]]
        self.iou_types = tuple(name for name in iou_types if name == "bbox" or any(has_masks) or not has_masks)
        if "segm" in self.iou_types and not all(has_masks):
            raise AnnotationError(
                f"annotations[{has_masks.index(False)}] has no segmentation, which others have: expected it for all or none"
            )
        self._found: dict[int, tuple[Detections, list[dict[str, Any]]]] = {}  # boxes, and masks run-length encoded

    def update(self, image_id: int, detections: Detections) -> None:
        """Adds the detections of one image; there may be none.

        Raises:
            InputError: the image is unknown to the annotations, was added before or has another size; or masks are missing.
        """
        if image_id not in self.images:
            raise InputError(f"image {image_id} is not among the {len(self.images)} images of the annotations")
        if image_id in self._found:
            raise InputError(f"image {image_id} was given before; give every image once")
        record = self.images[image_id]
        size = tuple(record.get(side, own) for side, own in zip(("height", "width"), detections.image_size, strict=True))
        if size != detections.image_size:
            raise InputError(
                f"image {image_id} is {size[1]}x{size[0]} in the annotations and {detections.image_size[1]}x"
                f"{detections.image_size[0]} in the prediction; score the images that were annotated"
            )
        known = np.isin(detections.labels, list(self.categories))
        names = tuple(name for name, is_known in zip(detections.names, known, strict=True) if is_known)
        boxes = Detections(
            detections.scores[known], detections.labels[known], detections.boxes[known], names, detections.image_size
        )
        masks: list[dict[str, Any]] = []
        if "segm" in self.iou_types and len(boxes):
            if detections.masks is None:
                raise InputError(f"the detections of image {image_id} have no masks; leave segm out of iou_types")
            masks = [encode_compressed_rle(mask) for mask in detections.masks[known]]
        self._found[image_id] = (boxes, masks)

    def compute(self) -> CocoScores:
        """Scores the images that were added.

        Raises:
            AnnotationError: the segmentation of an annotation is malformed.
        """
        scores = {name: self._score(name) if name in self.iou_types else None for name in IOU_TYPES}
        return CocoScores(scores["bbox"], scores["segm"], len(self._found))

    def matched(self, iou_type: str, across_classes: bool = False, above: float = -1.0) -> COCOeval:
        """pycocotools' own arrays for objects of every size: a `COCOeval` after `evaluate()` and `accumulate()`.

        Args:
            iou_type: "bbox", or "segm" if `iou_types` has it.
            across_classes: let detections match annotations of any class, at IoU .50 alone, and take all detections of an
                image. Otherwise they match within each class, at all ten IoU thresholds, and 100 of an image are taken.
            above: leave out detections whose score is not higher; by default none.

        Raises:
            AnnotationError: the segmentation of an annotation is malformed.
            InputError: the type is not scored.
        """
        if iou_type not in self.iou_types:
            raise InputError(f"{iou_type!r} is not scored here; expected one of {', '.join(self.iou_types)}")
        with _quiet():
            scoring = self._prepared(iou_type, above)
            scoring.params.areaRng, scoring.params.areaRngLbl = [[0, 1e10]], ["all"]
            scoring.params.maxDets = [100]
            if across_classes:
                scoring.params.useCats, scoring.params.iouThrs = 0, np.array([0.5])
                scoring.params.maxDets = [max((len(boxes) for boxes, _ in self._found.values()), default=0)]
            scoring.evaluate()
            scoring.accumulate()
        return scoring

    def _score(self, iou_type: str) -> TypeScores:
        with _quiet():
            scoring = self._prepared(iou_type)
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        names = [field.name for field in fields(AverageMetrics)]
        metrics = {name: None if value < 0 else float(value) for name, value in zip(names, scoring.stats, strict=True)}
        precision = scoring.eval["precision"][..., 0, -1]  # (IoU, recall, class): all areas, 100 detections
        per_class = {}
        for index, category in enumerate(scoring.params.catIds):
            values = precision[..., index]
            per_class[self.categories[int(category)]] = float(values.mean()) if (values > -1).all() else None
        return TypeScores(AverageMetrics(**metrics), per_class)

    def _prepared(self, iou_type: str, above: float = -1.0) -> COCOeval:
        truth = self._truth(iou_type)
        results = [entry for entry in self._results(iou_type) if entry["score"] > above]
        found = truth.loadRes(results) if results else _indexed({"annotations": []})  # loadRes wants at least one
        return COCOeval(truth, found, iou_type)

    def _truth(self, iou_type: str) -> COCO:
        truth = _indexed(
            {
                "images": [dict(self.images[image_id]) for image_id in self._found],
                "categories": [{"id": id_, "name": name} for id_, name in self.categories.items()],
                "annotations": [dict(item) for image_id in self._found for item in self._annotations[image_id]],
            }
        )
        if iou_type == "segm":
            for image_id in self._found:  # pycocotools wants the size of each, also of one without annotations
                checks.image_size(self.images[image_id], f"image {image_id}")
            for item in truth.dataset["annotations"]:
                item["segmentation"] = self._encoded(truth, item)
        return truth

    def _encoded(self, truth: COCO, item: Mapping[str, Any]) -> dict[str, Any]:
        """The run-length encoding of an annotation, at the size of its image."""
        where = f"annotations[{item['id'] - 1}] of image {item['image_id']}"
        image = self.images[item["image_id"]]
        size = checks.image_size(image, f"image {item['image_id']}")
        value = item["segmentation"]
        if isinstance(value, Mapping):
            # pycocotools gets counts that were checked and written anew: in it a damaged one ends the process.
            try:
                counts, _ = checked_counts(value, size)
            except AnnotationError as error:
                raise AnnotationError(f"{where}: segmentation: {error}") from error
            return {"size": list(size), "counts": compress_counts(counts).encode()}
        if not isinstance(value, (list, tuple)):
            raise AnnotationError(
                f"{where}: segmentation is {checks.told(value)}: expected polygons or a run-length encoding"
            )
        return truth.annToRLE({**item, "segmentation": checks.polygons(value, size, where)})

    def _results(self, iou_type: str) -> list[dict[str, Any]]:
        """Entries for `loadRes`. Those with masks have no box: else its area would decide whether an object is small."""
        if iou_type == "bbox":
            return [entry for image_id, (boxes, _) in self._found.items() for entry in boxes.to_coco(image_id)]
        return [
            {"image_id": image_id, "category_id": int(label), "score": float(score), "segmentation": mask}
            for image_id, (boxes, masks) in self._found.items()
            for label, score, mask in zip(boxes.labels, boxes.scores, masks, strict=True)
        ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pycocotools from printing."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # pycocotools' compiled part was written against numpy 1.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        yield


def _indexed(document: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def _checked(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of an annotation that pycocotools reads, checked."""
    if "segments_info" in item:
        raise AnnotationError(f"{where} has segments_info: this is a panoptic file; expected one of objects with boxes")
    return {
        "image_id": checks.integer(item, "image_id", where),
        "category_id": checks.integer(item, "category_id", where),
        "bbox": checks.four_numbers(item, where),
        "area": checks.area(item, where),
        "iscrowd": checks.crowd_flag(item, where) if "iscrowd" in item else 0,
        "segmentation": item.get("segmentation"),
    }
