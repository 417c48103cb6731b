"""How accurate a model is on annotated images, and how far that is from the checkpoint it came from.

Box and mask AP come from `detection_evaluator`, PQ from `panoptic_evaluator`. Only `batch` images are in memory at a time.
Each image is read once, also when two models are compared, and of the predictions only what scoring needs is kept.

A model without masks runs padded batches of consecutive images. A model with masks runs each image size by itself, since the
masks of a padded image would cover its padding.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.benchmarks.accuracy.panoptic_evaluator import PanopticEvaluator
from detr_export.benchmarks.accuracy.plots import require_plots_folder, write_plots
from detr_export.benchmarks.accuracy.results import Evaluation, ModelAccuracy
from detr_export.runtimes.errors import AnnotationError, ArtifactError, ImageError, InputError
from detr_export.runtimes.files import sha256_of_files, user_path
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.opening import ONNX, kind_of, spins
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.annotations.coco_file import AnnotationSource, check_categories, read_annotation_file
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.progress import SILENT, Progress

PANOPTIC_THRESHOLD = 0.85  # facebookresearch/detr's
_PACKAGES = ("detr-export", "numpy", "pillow", "pycocotools", "torch", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class _OpenModel:
    """A model that is to be scored."""

    name: str
    sha256: str | None
    predictor: Predictor


class _Scorer:
    """A model with its evaluators."""

    def __init__(self, model: _OpenModel, coco: CocoEvaluator, panoptic: PanopticEvaluator | None, threshold: float) -> None:
        self._model, self.coco, self.panoptic, self._threshold = model, coco, panoptic, threshold
        self.predictor = model.predictor

    def check_categories(self) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        for evaluator in (self.coco, self.panoptic):
            if evaluator is not None:
                notes += check_categories(self.predictor.id2label, evaluator.categories)
        return tuple(dict.fromkeys(notes))

    def update(self, image_ids: Sequence[int], images: Sequence[Any]) -> None:
        # COCO's numbers are those of the model's own boxes, which are not clipped.
        if "segm" not in self.coco.iou_types and self.panoptic is None:
            results = self.predictor.detect(list(images), threshold=0.0, clip=False, batch_size=len(images))
            for image_id, found in zip(image_ids, results, strict=True):
                self.coco.update(image_id, found)
            return
        both = self.predictor.detect_and_segment(
            list(images), panoptic_threshold=self._threshold, clip=False, batch_size=len(images)
        )
        for image_id, (found, segmentation) in zip(image_ids, both, strict=True):
            self.coco.update(image_id, found)
            if self.panoptic is not None:
                self.panoptic.update(image_id, segmentation)

    def accuracy(self) -> ModelAccuracy:
        metadata = self.predictor.metadata
        return ModelAccuracy(
            model=self._model.name,
            task=metadata.task,
            sha256=self._model.sha256,
            source=metadata.source,
            coco=self.coco.compute(),
            panoptic=None if self.panoptic is None else self.panoptic.compute(),
        )


def evaluate(
    model: str | Path | Predictor,
    images: str | Path,
    annotations: AnnotationSource,
    panoptic: tuple[str | Path, str | Path] | None = None,
    limit: int | None = None,
    batch: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    threshold: float = PANOPTIC_THRESHOLD,
    against: str | Path | Predictor | None = None,
    progress: Progress = SILENT,
    plots: str | Path | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Scores a model, and another beside it, on annotated images.

    Args:
        model: an ONNX file, an engine or a checkpoint; or an open `Predictor`, which stays open. Masks are scored when the
            model draws them and the annotations have any.
        images: the folder of the annotations' images.
        annotations: a COCO instances file, or its document; its images are taken in rising order of their ids.
        panoptic: a COCO panoptic file and the folder of its PNGs, for PQ.
        limit: take that many images; all when None.
        batch: images that are read together, and run together where the model can. Padding changes a DETR's numbers: scores
            that are to be compared with others need 1.
        device, threads: of the models that are opened here, as in `open_session`.
        threshold: score above which a query takes part in a panoptic segmentation. Of the detections all are kept, as AP
            needs them.
        against: another model, which predicts the same images.
        progress: what is told of the images that are done.
        plots: a folder for pictures and tables of what `model` confuses, of its precision over recall, and of score
            thresholds, as `write_plots` makes them.
        overwrite: replace plots in a folder that is not empty.

    Raises:
        ArtifactError, CheckpointError, BackendError: a model cannot be opened, or draws no masks where they are wanted.
        AnnotationError: annotations are malformed, or their categories are not the model's.
        ImageError: an image is missing or damaged.
        InputError: an argument is out of its range, or an image has no panoptic annotation or another size than annotated.
        OutputError: the folder of the plots is not empty or cannot be written.
    """
    for name, count in (("limit", limit), ("batch", batch)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; expected at least 1")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; expected a number from 0 to 1")
    if plots is not None:
        require_plots_folder(plots, overwrite)
    document = read_annotation_file(annotations)
    panoptic_document = {} if panoptic is None else read_annotation_file(panoptic[0])
    with contextlib.ExitStack() as stack:
        # Open the models. Threads of ONNX Runtime that wait busily slow a second model down.
        alone = against is None
        models = [_open(item, device, threads, alone, stack) for item in ([model] if against is None else [model, against])]
        with_masks = models[0].predictor.draws_masks
        _require_masks(models, with_masks, panoptic is not None)

        # Give each model its evaluators, which check that the annotations are about its classes.
        scorers = []
        for item in models:
            coco = CocoEvaluator(document, ("bbox", "segm") if with_masks else ("bbox",))
            segments = None if panoptic is None else PanopticEvaluator(panoptic_document, panoptic[1])
            scorers.append(_Scorer(item, coco, segments, threshold))
        notes, *_ = [scorer.check_categories() for scorer in scorers]
        if with_masks and "segm" not in scorers[0].coco.iou_types:
            notes += ("the annotations have no segmentation, so masks are not scored",)

        # Find all images before the first one is predicted.
        paths = _image_paths(scorers[0].coco, user_path(images), limit, not isinstance(annotations, Mapping))
        if scorers[0].panoptic is not None:
            scorers[0].panoptic.require_images(paths)

        # Predict: every image is read once, for all models.
        for done in range(0, len(paths), batch):
            progress.step(done, len(paths), "scoring images")
            image_ids = list(paths)[done : done + batch]
            loaded = [load_image(paths[image_id]) for image_id in image_ids]
            for scorer in scorers:
                scorer.update(image_ids, loaded)
        progress.step(len(paths), len(paths), "scoring images")
        accuracies = [scorer.accuracy() for scorer in scorers]
        if plots is not None:
            write_plots(scorers[0].coco, plots, overwrite)
    return Evaluation(
        accuracy=accuracies[0],
        reference=None if against is None else accuracies[1],
        images=len(paths),
        annotations="a document" if isinstance(annotations, Mapping) else os.fspath(annotations),
        panoptic_threshold=None if panoptic is None else threshold,
        batch=batch,
        device=device,
        notes=notes,
        plots=None if plots is None else os.fspath(plots),
        versions=_versions(),
    )


def _open(
    model: str | Path | Predictor, device: str, threads: int | None, alone: bool, stack: contextlib.ExitStack
) -> _OpenModel:
    """Opens a model until the stack ends; one that is open already is its owner's to close."""
    if isinstance(model, Predictor):
        return _OpenModel(model.metadata.source.get("name", "an open model"), None, model)
    is_onnx = kind_of(model) == ONNX
    place = onnx_file(model) if is_onnx else model
    spinning = False if not alone and spins(model, device) else None
    predictor = stack.enter_context(Predictor.load(place, device, threads, spinning=spinning))
    file = user_path(place)
    return _OpenModel(str(model), sha256_of_files([file]) if file.is_file() else None, predictor)


def _require_masks(models: Sequence[_OpenModel], with_masks: bool, with_panoptic: bool) -> None:
    """Refuses a model that draws no masks, where PQ or the other model's masks need them."""
    for item in models:
        if not item.predictor.draws_masks and (with_masks or with_panoptic):
            raise ArtifactError(
                f"{item.name} draws no masks, which {'PQ needs' if with_panoptic else f'{models[0].name} does'}; "
                "give a segmentation model (detr-export onnx --task segmentation)"
            )


def _image_paths(evaluator: CocoEvaluator, folder: Path, limit: int | None, inside: bool) -> dict[int, Path]:
    """The file of each image that is to be scored, all of which are there, by image id.

    `inside`: a file of annotations names pictures in the folder alone; a document of the caller may name any.
    """
    name_of = checks.file_inside if inside else checks.file_name
    records = list(evaluator.images.items())[:limit]
    paths = {image_id: folder / name_of(record, f"image {image_id}") for image_id, record in records}
    if not paths:
        raise AnnotationError("the annotations list no images: expected at least one to score")
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if missing:
        raise ImageError(
            f"{missing[0]} does not exist ({len(missing)} of {len(paths)} images are missing): expected every image of the "
            "annotations in that folder; check the folder, or limit the number of images"
        )
    return paths


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(distributions.PackageNotFoundError):
            found[name] = distributions.version(name)
    return found
