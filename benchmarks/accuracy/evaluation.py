"""How accurate a model is on annotated images, and how far that is from the checkpoint it came from.

Box and mask AP come from `coco_evaluator`, PQ from `panoptic_evaluator`. Images stream: `batch` of them are read at a time,
each once, also when two models are compared, and of the predictions only what scoring needs is kept.

A model without masks runs padded batches of consecutive images; one with masks runs once an image size, since masks of a
padded image would cover its padding.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

from detr_export.benchmarks.accuracy.annotation_file import AnnotationSource, check_categories, read_annotation_file
from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator, CocoScores
from detr_export.benchmarks.accuracy.panoptic_evaluator import PanopticEvaluator, PanopticScores
from detr_export.runtimes.errors import AnnotationError, ArtifactError, ImageError, InputError, missing_extra
from detr_export.runtimes.files import sha256_of_files, user_path
from detr_export.runtimes.opening import ONNX, kind_of
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.images import load_image

try:
    from tqdm import tqdm
except ImportError as error:
    raise missing_extra("tqdm", "bench") from error

PANOPTIC_THRESHOLD = 0.85  # facebookresearch/detr's
_PACKAGES = ("detr-export", "numpy", "pillow", "pycocotools", "torch", "onnxruntime", "onnxruntime-gpu")

Metrics = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class ModelAccuracy:
    """One model and its scores."""

    model: str  # as it was given
    task: str  # "detection" or "segmentation"
    sha256: str | None  # of the file; None for a checkpoint that is a folder or on the hub
    source: Mapping[str, str]  # name and sha256 of the weights, as the model's metadata has them
    coco: CocoScores
    panoptic: PanopticScores | None

    def metrics(self) -> Metrics:
        """The numbers of the whole set, in [0, 1], by `box`, `mask` and `panoptic`: those that were scored."""
        found: Metrics = {}
        for name, scores in (("box", self.coco.bbox), ("mask", self.coco.segm)):
            if scores is not None:
                found[name] = asdict(scores.metrics)
        if self.panoptic is not None:
            parts = (("", self.panoptic.all), ("_things", self.panoptic.things), ("_stuff", self.panoptic.stuff))
            found["panoptic"] = {
                f"{name.upper()}{suffix}": getattr(part, name) for suffix, part in parts for name in ("pq", "sq", "rq")
            }
        return found

    def per_class(self) -> dict[str, Any]:
        """AP by class under `box` and `mask`, and a row a class under `panoptic`."""
        found: dict[str, Any] = {}
        for name, scores in (("box", self.coco.bbox), ("mask", self.coco.segm)):
            if scores is not None:
                found[name] = dict(scores.per_class)
        if self.panoptic is not None:
            found["panoptic"] = [asdict(row) for row in self.panoptic.per_class]
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "task": self.task,
            "sha256": self.sha256,
            "source": dict(self.source),
            "metrics": self.metrics(),
            "per_class": self.per_class(),
        }


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    accuracy: ModelAccuracy
    reference: ModelAccuracy | None  # of `against`
    images: int
    annotations: str
    panoptic_threshold: float | None  # None without a panoptic evaluation
    batch: int
    device: str
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that are installed, and of Python

    def difference(self) -> Metrics | None:
        """Model minus reference for each metric, None where one of them has none; None without a reference."""
        if self.reference is None:
            return None
        theirs = self.reference.metrics()
        return {
            kind: {name: _minus(value, theirs[kind][name]) for name, value in values.items()}
            for kind, values in self.accuracy.metrics().items()
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the model's own keys, `reference` with the same ones, `difference`, and how it was measured."""
        return {
            **self.accuracy.to_dict(),
            "reference": None if self.reference is None else self.reference.to_dict(),
            "difference": self.difference(),
            "images": self.images,
            "annotations": self.annotations,
            "panoptic_threshold": self.panoptic_threshold,
            "batch": self.batch,
            "device": self.device,
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }

    def summary(self) -> str:
        """Two tables in plain text: a row a metric, and a row a class that the annotations or predictions have."""
        threshold = "" if self.panoptic_threshold is None else f", panoptic threshold {self.panoptic_threshold:g}"
        lines = [f"{self.accuracy.model}: {self.images} images{threshold}"]
        if self.reference is not None:
            lines.append(f"reference: {self.reference.model}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, "", *_aligned(self._metric_rows()), "", *_aligned(self._class_rows())])

    def _metric_rows(self) -> list[list[str]]:
        difference = self.difference()
        rows = [["metric", "model", *([] if difference is None else ["reference", "difference"])]]
        for kind, values in self.accuracy.metrics().items():
            for name, value in values.items():
                row = [f"{kind} {name.replace('_', ' ')}", _number(value)]
                if self.reference is not None and difference is not None:
                    row += [_number(self.reference.metrics()[kind][name]), _number(difference[kind][name], "+.5f")]
                rows.append(row)
        return rows

    def _class_rows(self) -> list[list[str]]:
        """Columns of the model's scores; a class is in the table when it has one."""
        columns: dict[str, Mapping[str, float | None]] = {}
        coco, panoptic = self.accuracy.coco, self.accuracy.panoptic
        for title, scores in (("box AP", coco.bbox), ("mask AP", coco.segm)):
            if scores is not None:
                columns[title] = scores.per_class
        if panoptic is not None:
            columns |= {
                key.upper(): {row.name: getattr(row, key) for row in panoptic.per_class} for key in ("pq", "sq", "rq")
            }
        names = list(
            dict.fromkeys(name for column in columns.values() for name, value in column.items() if value is not None)
        )
        return [
            ["class", *columns],
            *([name, *(_number(column.get(name)) for column in columns.values())] for name in names),
        ]


class _Contestant:
    """A model with its evaluators."""

    def __init__(
        self, name: str, predictor: Predictor, coco: CocoEvaluator, panoptic: PanopticEvaluator | None, threshold: float
    ) -> None:
        self.name, self.predictor, self.coco, self.panoptic, self._threshold = name, predictor, coco, panoptic, threshold

    def check_categories(self) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        for evaluator in (self.coco, self.panoptic):
            if evaluator is not None:
                notes += check_categories(self.predictor.id2label, evaluator.categories)
        return tuple(dict.fromkeys(notes))

    def update(self, image_ids: Sequence[int], pictures: Sequence[Any]) -> None:
        if "segm" not in self.coco.iou_types and self.panoptic is None:
            for image_id, found in zip(image_ids, self.predictor.detect(list(pictures), threshold=0.0), strict=True):
                self.coco.update(image_id, found)
            return
        both = self.predictor.detect_and_segment(list(pictures), panoptic_threshold=self._threshold)
        for image_id, (found, segmentation) in zip(image_ids, both, strict=True):
            self.coco.update(image_id, found)
            if self.panoptic is not None:
                self.panoptic.update(image_id, segmentation)

    def accuracy(self) -> ModelAccuracy:
        file = user_path(self.name)
        metadata = self.predictor.metadata
        return ModelAccuracy(
            model=self.name,
            task=metadata.task,
            sha256=sha256_of_files([file]) if file.is_file() else None,
            source=metadata.source,
            coco=self.coco.compute(),
            panoptic=None if self.panoptic is None else self.panoptic.compute(),
        )


def evaluate(
    model: str | Path,
    images: str | Path,
    annotations: AnnotationSource,
    panoptic: tuple[str | Path, str | Path] | None = None,
    limit: int | None = None,
    batch: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    threshold: float = PANOPTIC_THRESHOLD,
    against: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores a model, and another beside it, on annotated images.

    Args:
        model: an ONNX file or a checkpoint. Masks are scored when it draws them and the annotations have any.
        images: the folder of the annotations' images.
        annotations: a COCO instances file, or its document; its images are taken in rising order of their ids.
        panoptic: a COCO panoptic file and the folder of its PNGs, for PQ.
        limit: take that many images; all when None.
        batch: images that are read, and run where the model can, together. Padding moves a DETR's numbers: scores to be
            compared with others want 1.
        device, threads: as in `open_session`, of both models.
        threshold: score above which a query takes part in a panoptic segmentation. Detections are all kept, as AP wants it.
        against: another file or checkpoint, which predicts the same images.
        progress: show a bar on stderr when that is a terminal.

    Raises:
        ArtifactError, CheckpointError, BackendError: a model cannot be opened, or draws no masks where they are wanted.
        AnnotationError: annotations are malformed, or their categories are not the model's.
        ImageError: an image is missing or damaged.
        InputError: an argument is out of its range, or an image has no panoptic annotation or another size than annotated.
    """
    for name, count in (("limit", limit), ("batch", batch)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; expected at least 1")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; expected a number from 0 to 1")
    document = read_annotation_file(annotations)
    panoptic_document = {} if panoptic is None else read_annotation_file(panoptic[0])
    names = [str(model)] if against is None else [str(model), str(against)]
    with contextlib.ExitStack() as stack:
        # Threads of ONNX Runtime that wait busily slow the other model down.
        spinning = [False if against is not None and kind_of(name) == ONNX else None for name in names]
        predictors = [
            stack.enter_context(Predictor.load(name, device, threads, spinning=spin))
            for name, spin in zip(names, spinning, strict=True)
        ]
        with_masks = predictors[0].draws_masks
        for name, predictor in zip(names, predictors, strict=True):
            if not predictor.draws_masks and (with_masks or panoptic is not None):
                raise ArtifactError(
                    f"{name} draws no masks, which {'PQ needs' if panoptic is not None else f'{names[0]} does'}; "
                    "give a segmentation model (detr-export onnx --task segmentation)"
                )
        contestants = []
        for name, predictor in zip(names, predictors, strict=True):
            coco = CocoEvaluator(document, ("bbox", "segm") if with_masks else ("bbox",))
            segments = None if panoptic is None else PanopticEvaluator(panoptic_document, panoptic[1])
            contestants.append(_Contestant(name, predictor, coco, segments, threshold))
        notes, *_ = [contestant.check_categories() for contestant in contestants]
        if with_masks and "segm" not in contestants[0].coco.iou_types:
            notes += ("the annotations have no segmentation, so masks are not scored",)
        paths = _image_paths(contestants[0].coco, user_path(images), limit)
        if contestants[0].panoptic is not None:
            contestants[0].panoptic.require_images(paths)
        with tqdm(total=len(paths), unit="image", disable=None if progress else True) as bar:
            for image_ids in _batches(list(paths), batch):
                pictures = [load_image(paths[image_id]) for image_id in image_ids]
                for contestant in contestants:
                    contestant.update(image_ids, pictures)
                bar.update(len(image_ids))
        accuracies = [contestant.accuracy() for contestant in contestants]
    return Evaluation(
        accuracy=accuracies[0],
        reference=None if against is None else accuracies[1],
        images=len(paths),
        annotations="a document" if isinstance(annotations, Mapping) else os.fspath(annotations),
        panoptic_threshold=None if panoptic is None else threshold,
        batch=batch,
        device=device,
        notes=notes,
        versions=_versions(),
    )


def _image_paths(evaluator: CocoEvaluator, folder: Path, limit: int | None) -> dict[int, Path]:
    """The file of each image that is to be scored, all of which are there, by image id."""
    paths = {}
    for image_id, record in list(evaluator.images.items())[:limit]:
        file_name = checks.field(record, "file_name", f"image {image_id}")
        if not isinstance(file_name, str):
            raise AnnotationError(f"image {image_id}: file_name is {file_name!r:.80}: expected text")
        paths[image_id] = folder / file_name
    if not paths:
        raise AnnotationError("the annotations list no images: expected at least one to score")
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise ImageError(
            f"{missing[0]} does not exist ({len(missing)} of {len(paths)} images are missing): expected every image of the "
            "annotations in that folder; check the folder, or limit the number of images"
        )
    return paths


def _batches(image_ids: list[int], batch: int) -> Iterator[list[int]]:
    for start in range(0, len(image_ids), batch):
        yield image_ids[start : start + batch]


def _minus(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(distributions.PackageNotFoundError):
            found[name] = distributions.version(name)
    return found
