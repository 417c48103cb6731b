"""`Predictor`: one object that turns images into results, whichever backend runs the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union, overload

import numpy as np

from detr_export.runtimes.errors import ArtifactError, ImageError, InputError
from detr_export.runtimes.grouping import Size, size_of_image
from detr_export.runtimes.image_runner import ImageRunner, Outputs, Sizes
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.pipeline import WORKERS, Done, ModelThread, Task, in_batches
from detr_export.runtimes.processing.batch import Picture
from detr_export.runtimes.processing.detection import Kept, keep_detections, softmax
from detr_export.runtimes.processing.end_to_end import keep_sorted, mask_outputs
from detr_export.runtimes.processing.frames import Color, require_color
from detr_export.runtimes.processing.images import ImageSource, borrow_pixels
from detr_export.runtimes.processing.segmentation import (
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
    query_masks,
)
from detr_export.runtimes.ready import Preparation, ReadyPicture
from detr_export.runtimes.results.detections import Detections, make_detections
from detr_export.runtimes.results.segmentation import KINDS, Segmentation, make_segmentation
from detr_export.runtimes.results.tables import REQUIRED, Table, tables_from_detections
from detr_export.runtimes.session import Choose, Session, largest_batch
from detr_export.runtimes.stream import Taken, find_in, read, require_batches, size_in_model, take
from detr_export.runtimes.tasks import DETECTION, TABLES, TASKS, require_clip
from detr_export.runtimes.thresholds import require_shares

_NO_MASKS = "draws no masks; export a segmentation checkpoint with: detr-export onnx --task segmentation"
_NONE_BELOW = -1.0  # a threshold below all scores
_BATCH_SIZE = 8  # most images of one run, where the caller does not say
_MAX_PADDING = 0.1  # largest share of padding in a batch of a list that does not fit into one

ImageList = Union["list[ImageSource]", "tuple[ImageSource, ...]"]
Images = Union[ImageSource, ImageList]


class Predictor:
    """A DETR that takes images and returns results. Many threads may share one predictor.

    Another process gets its own: a predictor from `load` is pickled as the arguments of `load`, and opens its file again. A
    relative path is then looked up in the folder of that process.

    Args:
        session: an open session of a DETR with metadata; the predictor closes it.

    Raises:
        ArtifactError: the model is not a DETR, or the file says nothing about its classes and images.
    """

    _opening: Optional[tuple[Any, ...]] = None  # arguments of `load`

    def __init__(self, session: Session) -> None:
        self._runner = ImageRunner(session)
        self.session = session
        self.metadata = self._runner.metadata
        self.processor = self._runner.processor
        self.id2label: Mapping[int, str] = self.metadata.id2label

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        attentions: bool = False,
        spinning: Optional[bool] = None,
        trust_engine: bool = False,
        processor: Optional[str] = None,
        strict: bool = False,
        cache: str | Path | None = None,
        timeout: Optional[float] = None,
    ) -> Predictor:
        """Opens a file or checkpoint; arguments and errors as in `open_session`."""
        session = open_session(
            path,
            device,
            threads,
            attentions,
            spinning,
            trust_engine,
            processor=processor,
            strict=strict,
            cache=cache,
            timeout=timeout,
        )
        try:
            predictor = cls(session)
        except BaseException:
            session.close()
            raise
        arguments = (path, device, threads, attentions, spinning, trust_engine, processor, strict, cache, timeout)
        predictor._opening = arguments
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        if self._opening is None:
            raise InputError("a Predictor around an open session cannot be pickled; open its file with Predictor.load")
        return type(self).load, self._opening

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which the model gets an image of (height, width) pixels; see `ImageRunner.model_size`."""
        return self._runner.model_size(size)

    @property
    def preparation(self) -> Preparation:
        """Makes pictures ready without the model, in another process too. `predict` takes `ReadyPicture`s as images."""
        return self._runner.preparation

    @property
    def draws_masks(self) -> bool:
        """Whether the model segments. A model that does not can only `detect`."""
        return self._has_output(self._masks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model can do, of `TASKS`; the default is the first."""
        masks: tuple[str, ...] = KINDS if self.draws_masks else ()
        if self.metadata.end_to_end is not None:  # it gives the best class of a query only
            masks = tuple(kind for kind in masks if kind != "semantic")
        return (DETECTION, *masks, *(() if self._missing_for_tables() else (TABLES,)))

    def predict(
        self,
        images: Images,
        task: str = DETECTION,
        threshold: float = 0.5,
        color: Color = "rgb",
        *,
        clip: bool = True,
        batch_size: Optional[int] = None,
    ) -> Any:
        """A `Result` for one image, a list of them for a list: what the method for a task gives.

        Args:
            images: as in `detect`.
            task: "detection", "panoptic", "instances", "semantic" or "tables".
            threshold: as in the method; semantic maps have none.
            color, batch_size: as in `detect`.
            clip: as in `detect`. Segments have the boxes of their masks, so False is refused for them.

        Raises:
            InputError: there is no such task, or it has no boxes to clip.
            ArtifactError, ImageError, InputError, BackendError: as in the method.
        """
        require_clip(task, clip)
        if task == DETECTION:
            return self.detect(images, threshold, color, clip=clip, batch_size=batch_size)
        if task == TABLES:
            return self.tables(images, threshold, color, clip=clip, batch_size=batch_size)
        if task == "panoptic":
            return self.segment_panoptic(images, threshold, color=color, batch_size=batch_size)
        if task == "instances":
            return self.segment_instances(images, threshold, color=color, batch_size=batch_size)
        if task == "semantic":
            return self.segment_semantic(images, color, batch_size=batch_size)
        raise InputError(f"task is {task!r}; expected one of {', '.join(TASKS)}")

    def predict_stream(
        self,
        images: Iterable[ImageSource],
        task: str = DETECTION,
        threshold: float = 0.5,
        color: Color = "rgb",
        *,
        clip: bool = True,
        batch_size: int = 1,
        max_padding: float = 0.0,
        workers: int = WORKERS,
    ) -> Generator[Any, None, None]:
        """Predicts on any number of images, and yields the results in their order.

        While the model runs, threads read and prepare the next images. They have ended when the iterator has: at its end,
        after an exception, and when it is closed.

        Args:
            images: an iterable, which may be endless. It is read in the caller's thread as results are taken, at most
                `2 * workers` batches ahead, and with `batch_size` above 1 also `AHEAD` batches to find images of one size.
                Paths and encoded bytes are read by the threads. Pixels are copied, so the next frame may overwrite them.
            task, threshold, color, clip: as in `predict`.
            batch_size, max_padding, workers: as `batch`, `max_padding` and `workers` in `predict_files`. With the defaults
                results are those of one image at a time.

        Raises:
            ArtifactError, InputError: at once, if the model or the task does not have what is asked for.
            ImageError, InputError: in the place of the image that cannot be read or processed, whose number, from 0, the
                message has. An exception of `images` also comes after the results of the images before it.
            BackendError: the backend failed.
        """
        if isinstance(images, (str, bytes, bytearray)) or not isinstance(images, Iterable):
            raise InputError(f"images is a {type(images).__name__}; expected an iterable of images, such as a list")
        if workers < 0:
            raise InputError(f"workers is {workers}; expected a number of threads, or 0 for none")
        require_color(color)
        self.predict([], task, threshold, clip=clip)  # refuses what the method for the task refuses
        require_batches(self.session, self.processor, task, batch_size, max_padding)
        taken = take(images, color, self.model_size, sizes=batch_size > 1)

        def find(predictor: Predictor, batch: list[Taken]) -> list[Any]:
            def run(pictures: list[Picture]) -> list[Any]:
                found: list[Any] = predictor.predict([*pictures], task, threshold, clip=clip, batch_size=batch_size)
                return found

            return find_in(run, [read(item, color) for item in batch], self.model_size, batch_size, max_padding)

        return _raising(self.in_batches(find, taken, batch_size, max_padding, workers))

    def in_batches(
        self,
        function: Callable[[Predictor, list[Task]], list[Done]],
        tasks: Iterable[tuple[Task, Optional[Size]]],
        batch: int,
        max_padding: float,
        workers: int,
    ) -> Generator[Done, None, None]:
        """`pipeline.in_batches` of a function that also takes a predictor. With workers, the model runs in a thread beside
        theirs, and the predictor is one around that thread."""
        if not workers:
            yield from in_batches(partial(function, self), tasks, batch, max_padding)
            return
        with ModelThread(self.session) as model:
            threaded = partial(function, Predictor(model))
            yield from in_batches(threaded, tasks, batch, max_padding, workers, model.stop)

    @overload
    def detect(
        self,
        images: ImageSource,
        threshold: float = ...,
        color: Color = ...,
        *,
        clip: bool = ...,
        batch_size: Optional[int] = ...,
    ) -> Detections: ...
    @overload
    def detect(
        self,
        images: ImageList,
        threshold: float = ...,
        color: Color = ...,
        *,
        clip: bool = ...,
        batch_size: Optional[int] = ...,
    ) -> list[Detections]: ...
    def detect(
        self,
        images: Images,
        threshold: float = 0.5,
        color: Color = "rgb",
        *,
        clip: bool = True,
        batch_size: Optional[int] = None,
    ) -> Union[Detections, list[Detections]]:
        """Finds objects.

        Args:
            images: a path, encoded bytes, a PIL image or an RGB array (height, width, 3) uint8; or a list of them, of any
                sizes. A list of up to `batch_size` images runs as one padded batch, or, on a model without a pixel mask, as
                one batch for each size. A longer one is divided into batches of similar sizes, at most a tenth of whose
                pixels is padding. Images are read when their batch runs.
                An array may be any object that shows its pixels in host memory, with any strides; see `load_image`. It is
                read where it lies, is not changed, and is not kept.
            threshold: objects with a higher score are returned.
            color: "bgr" if the channels of the arrays are in that order, as OpenCV has them. It is for arrays only.
            clip: whether boxes end at the edges of the image, 0 and its width or height. A DETR's own boxes may go beyond.
            batch_size: most images of one run of the model, which bounds the memory. None means 8, or the most that the
                model takes if that is less.

        Returns:
            One `Detections` for one image, a list for a list. Scores and labels, and without `clip` also boxes, are those of
            `DetrImageProcessor.post_process_object_detection`.

        Raises:
            ImageError: an image cannot be read or processed.
            InputError: the threshold is not from 0 to 1, `color` does not fit an image, `batch_size` is below 1, or the
                model does not take images of this size, or so many of them.
            BackendError: the backend failed.
        """
        require_shares(threshold=threshold)

        def detect(outputs: Outputs, sizes: Sizes) -> list[Detections]:
            found = self._kept(outputs, threshold, sizes)
            return [make_detections(kept, size, self.id2label, clip) for kept, size in zip(found, sizes)]

        return self._each(images, detect, color, _no_masks, batch_size)

    @overload
    def tables(
        self,
        images: ImageSource,
        threshold: float = ...,
        color: Color = ...,
        *,
        clip: bool = ...,
        batch_size: Optional[int] = ...,
    ) -> list[Table]: ...
    @overload
    def tables(
        self,
        images: ImageList,
        threshold: float = ...,
        color: Color = ...,
        *,
        clip: bool = ...,
        batch_size: Optional[int] = ...,
    ) -> list[list[Table]]: ...
    def tables(
        self,
        images: Images,
        threshold: float = 0.5,
        color: Color = "rgb",
        *,
        clip: bool = True,
        batch_size: Optional[int] = None,
    ) -> Union[list[Table], list[list[Table]]]:
        """Reads the structure of tables, with a model that finds rows and columns, such as Table Transformer's.

        Args:
            images: as in `detect`. They show tables with a small margin, as such models are trained on.
            threshold: as in `detect`, for objects of all classes. What they become is said in `tables_from_detections`.
            color: as in `detect`.
            clip: as in `detect`. Tables are put together from boxes that are clipped already.
            batch_size: as in `detect`.

        Returns:
            For each image its tables from top to bottom; a list of such lists for a list of images.

        Raises:
            ArtifactError: the model has no classes "table row" and "table column".
            ImageError, InputError, BackendError: as in `detect`.
        """
        missing = self._missing_for_tables()
        if missing:
            raise ArtifactError(
                f"the model has no class {missing[0]!r}, and so it cannot read tables; expected a model of the structure of "
                "tables, such as microsoft/table-transformer-structure-recognition"
            )
        found = self.detect(images, threshold, color, clip=clip, batch_size=batch_size)
        return tables_from_detections(found) if isinstance(found, Detections) else [*map(tables_from_detections, found)]

    @overload
    def segment_panoptic(
        self,
        images: ImageSource,
        threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        label_ids_to_fuse: Optional[Collection[int]] = ...,
        color: Color = ...,
        *,
        batch_size: Optional[int] = ...,
    ) -> Segmentation: ...
    @overload
    def segment_panoptic(
        self,
        images: ImageList,
        threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        label_ids_to_fuse: Optional[Collection[int]] = ...,
        color: Color = ...,
        *,
        batch_size: Optional[int] = ...,
    ) -> list[Segmentation]: ...
    def segment_panoptic(
        self,
        images: Images,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Optional[Collection[int]] = None,
        color: Color = "rgb",
        *,
        batch_size: Optional[int] = None,
    ) -> Union[Segmentation, list[Segmentation]]:
        """Divides images into objects and stuff.

        Args:
            images: as in `detect`. Images of one size run as one batch. Sizes are not mixed, because the masks of a padded
                image would cover its padding.
            threshold, mask_threshold, overlap_mask_area_threshold: as in
                `DetrImageProcessor.post_process_panoptic_segmentation`.
            label_ids_to_fuse: classes whose regions share one segment; None means the model's own stuff classes.
            color: as in `detect`.
            batch_size: most images of one run, as in `detect`.

        Returns:
            One `Segmentation` for one image, a list for a list. The numbers are those of the method above, except that
            two classes never share an id.

        Raises:
            ArtifactError: the model draws no masks.
            ImageError, InputError, BackendError: as in `detect`.
        """

        def segment(outputs: Outputs, sizes: Sizes) -> list[Segmentation]:
            return self._panoptic(outputs, threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, sizes)

        require_shares(
            threshold=threshold, mask_threshold=mask_threshold, overlap_mask_area_threshold=overlap_mask_area_threshold
        )
        self._require_output(self._masks, _NO_MASKS)
        return self._each(images, segment, color, _masks_above(threshold), batch_size, padded=False)

    @overload
    def detect_and_segment(
        self,
        images: ImageSource,
        threshold: float = ...,
        panoptic_threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        label_ids_to_fuse: Optional[Collection[int]] = ...,
        color: Color = ...,
        *,
        clip: bool = ...,
        batch_size: Optional[int] = ...,
    ) -> tuple[Detections, Segmentation]: ...
    @overload
    def detect_and_segment(
        self,
        images: ImageList,
        threshold: float = ...,
        panoptic_threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        label_ids_to_fuse: Optional[Collection[int]] = ...,
        color: Color = ...,
        *,
        clip: bool = ...,
        batch_size: Optional[int] = ...,
    ) -> list[tuple[Detections, Segmentation]]: ...
    def detect_and_segment(
        self,
        images: Images,
        threshold: float = 0.0,
        panoptic_threshold: float = 0.85,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Optional[Collection[int]] = None,
        color: Color = "rgb",
        *,
        clip: bool = True,
        batch_size: Optional[int] = None,
    ) -> Union[tuple[Detections, Segmentation], list[tuple[Detections, Segmentation]]]:
        """Finds objects with their masks, and divides the image, in one run of the model. COCO's AP and PQ need both.

        Args:
            images: as in `segment_panoptic`.
            threshold: for the detections, as in `detect`. Each of them holds a full-size mask; 0 is for measuring AP.
            panoptic_threshold: the `threshold` of `segment_panoptic`; the default is that of facebookresearch/detr.
            mask_threshold: for both.
            overlap_mask_area_threshold, label_ids_to_fuse, color: as in `segment_panoptic`.
            clip, batch_size: as in `detect`.

        Returns:
            For each image a pair: the `Detections` that `detect` finds, with masks that may overlap (see `query_masks`),
            and the `Segmentation` of `segment_panoptic`.

        Raises:
            ArtifactError, ImageError, InputError, BackendError: as in `segment_panoptic`.
        """

        def both(outputs: Outputs, sizes: Sizes) -> list[tuple[Detections, Segmentation]]:
            maps = self._panoptic(
                outputs, panoptic_threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, sizes
            )
            results = []
            for index, kept in enumerate(self._kept(outputs, threshold, sizes)):
                masks = query_masks(outputs[self._masks][index][kept.queries], sizes[index], mask_threshold)
                found = make_detections(kept, sizes[index], self.id2label, clip)
                results.append((replace(found, masks=masks), maps[index]))
            return results

        require_shares(
            threshold=threshold,
            panoptic_threshold=panoptic_threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
        )
        self._require_output(self._masks, _NO_MASKS)
        return self._each(images, both, color, _masks_above(min(threshold, panoptic_threshold)), batch_size, padded=False)

    @overload
    def segment_instances(
        self,
        images: ImageSource,
        threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        color: Color = ...,
        *,
        batch_size: Optional[int] = ...,
    ) -> Segmentation: ...
    @overload
    def segment_instances(
        self,
        images: ImageList,
        threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        color: Color = ...,
        *,
        batch_size: Optional[int] = ...,
    ) -> list[Segmentation]: ...
    def segment_instances(
        self,
        images: Images,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        color: Color = "rgb",
        *,
        batch_size: Optional[int] = None,
    ) -> Union[Segmentation, list[Segmentation]]:
        """Finds objects with their masks. Arguments, result and errors are as in `segment_panoptic`; nothing is fused."""

        def segment(outputs: Outputs, sizes: Sizes) -> list[Segmentation]:
            found = post_process_instance_segmentation(
                self._raw(outputs, threshold), threshold, mask_threshold, overlap_mask_area_threshold, sizes
            )
            return self._segmentations("instances", found)

        require_shares(
            threshold=threshold, mask_threshold=mask_threshold, overlap_mask_area_threshold=overlap_mask_area_threshold
        )
        self._require_output(self._masks, _NO_MASKS)
        return self._each(images, segment, color, _masks_above(threshold), batch_size, padded=False)

    @overload
    def segment_semantic(
        self, images: ImageSource, color: Color = ..., *, batch_size: Optional[int] = ...
    ) -> Segmentation: ...
    @overload
    def segment_semantic(
        self, images: ImageList, color: Color = ..., *, batch_size: Optional[int] = ...
    ) -> list[Segmentation]: ...
    def segment_semantic(
        self, images: Images, color: Color = "rgb", *, batch_size: Optional[int] = None
    ) -> Union[Segmentation, list[Segmentation]]:
        """Gives every pixel a class, whose id is in the map. Images, result and errors are as in `segment_panoptic`."""

        def segment(outputs: Outputs, sizes: Sizes) -> list[Segmentation]:
            maps = post_process_semantic_segmentation(outputs, sizes, dtype=np.int32)
            return [make_segmentation("semantic", classes, [], self.id2label) for classes in maps]

        self._require_output(
            "pred_masks",
            _NO_MASKS
            if self.metadata.end_to_end is None
            else "is an end-to-end file, which gives the best class of a query only; export it without --end-to-end",
        )
        return self._each(images, segment, color, _masks_above(_NONE_BELOW), batch_size, padded=False)

    def explain(
        self, image: ImageSource, threshold: float = 0.5, color: Color = "rgb", *, clip: bool = True
    ) -> tuple[Detections, np.ndarray]:
        """Finds objects in one image, and shows where the decoder looked for each of them.

        Returns:
            N detections, as in `detect`, and their attention (N, h, w) float32: the cross-attention of the last decoder
            layer over the image's feature map, averaged over the heads. `Detections.draw_attention` draws both.

        Raises:
            ArtifactError: the model does not return its attention.
            ImageError, InputError, BackendError: as in `detect`.
        """
        require_shares(threshold=threshold)
        self._require_output(
            "cross_attention",
            "does not return its attention; export it with: detr-export onnx --with-attentions, and without --end-to-end",
        )

        def explained(outputs: Outputs, sizes: Sizes) -> list[tuple[Detections, np.ndarray]]:
            (kept,) = self._kept(outputs, threshold, sizes)
            attention = outputs["cross_attention"][0].mean(axis=0)  # (Q, h, w)
            return [(make_detections(kept, sizes[0], self.id2label, clip), attention[kept.queries])]

        return self._each(image, explained, color, _no_masks, padded=False)

    def _missing_for_tables(self) -> list[str]:
        """Classes without which tables cannot be read."""
        names = {name.lower() for name in self.id2label.values()}
        return [name for name in REQUIRED if name not in names]

    @property
    def _masks(self) -> str:
        """The output with the masks."""
        return "pred_masks" if self.metadata.end_to_end is None else "masks"

    def _kept(self, outputs: Outputs, threshold: float, sizes: Sizes) -> list[Kept]:
        if self.metadata.end_to_end is not None:
            return keep_sorted(outputs, threshold)
        return keep_detections(outputs, threshold, sizes)

    def _raw(self, outputs: Outputs, threshold: float) -> Outputs:
        """`logits` and `pred_masks`, as far as an end-to-end file gives them."""
        if self.metadata.end_to_end is None:
            return outputs
        if threshold < 0.5:
            raise InputError(
                f"the threshold of segments is {threshold}; an end-to-end file does not say how sure it is that there is no "
                "object, and so it needs 0.5 at least"
            )
        return mask_outputs(outputs)

    def _panoptic(
        self,
        outputs: Outputs,
        threshold: float,
        mask_threshold: float,
        overlap_mask_area_threshold: float,
        label_ids_to_fuse: Optional[Collection[int]],
        sizes: Sizes,
    ) -> list[Segmentation]:
        fuse = self.metadata.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
        found = post_process_panoptic_segmentation(
            self._raw(outputs, threshold),
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            fuse,
            sizes,
            distinct_ids=True,
        )
        return self._segmentations("panoptic", found)

    def _segmentations(self, kind: str, found: list[dict[str, Any]]) -> list[Segmentation]:
        return [make_segmentation(kind, item["segmentation"], item["segments_info"], self.id2label) for item in found]

    def _has_output(self, name: str) -> bool:
        return any(spec.name == name for spec in self.session.outputs)

    def _require_output(self, name: str, otherwise: str) -> None:
        if not self._has_output(name):
            raise ArtifactError(f"the model {otherwise}")

    def _each(
        self,
        images: Images,
        finish: Callable[[Outputs, list[tuple[int, int]]], list[Any]],
        color: Color,
        choose: Choose,
        batch_size: Optional[int] = None,
        padded: bool = True,
    ) -> Any:
        """Runs images in batches and returns their results: a list for a list of images, one result for one image.

        Args:
            images: one or several.
            finish: turns the raw outputs of a batch and the (height, width) of its images into one result for each.
            color: the order of the channels of arrays.
            choose: says whose masks `finish` reads.
            batch_size: most images of a batch; None for the default.
            padded: whether images of different sizes may share a batch.
        """

        def run(sources: Sequence[ImageSource]) -> list[Any]:
            pictures: list[Any] = [
                item if isinstance(item, ReadyPicture) else borrow_pixels(item, color) for item in sources
            ]
            results: list[Any] = [None] * len(pictures)
            for batch in self._runner.run(pictures, padded, choose):
                for index, result in zip(batch.indices, finish(batch.outputs, batch.sizes)):
                    results[index] = result
            return results

        if batch_size is None:
            batch_size = min(_BATCH_SIZE, largest_batch(self.session) or _BATCH_SIZE)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        if not isinstance(images, (list, tuple)):
            return run([images])[0]
        if len(images) <= batch_size:
            return run(images)
        sized = ((source, size_in_model(self.model_size, _size_of(source))) for source in images)
        max_padding = _MAX_PADDING if padded and self._runner.pads else 0.0
        return [*in_batches(run, sized, batch_size, max_padding)]

    def close(self) -> None:
        """Closes the session."""
        self.session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _raising(outcomes: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """The results, up to the first one that is an exception, which is raised."""
    with closing(outcomes):
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, (ImageError, InputError)):
                raise type(outcome)(f"image {number}: {outcome}") from outcome
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


def _size_of(image: Any) -> Optional[Size]:
    return image.size if isinstance(image, ReadyPicture) else size_of_image(image)


def _masks_above(threshold: float) -> Choose:
    """Chooses the queries whose best real class is above a threshold. All that become segments are among them."""

    def choose(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        probabilities = softmax(np.asarray(outputs["logits"], dtype=np.float32))
        chosen: np.ndarray = probabilities[..., :-1].max(axis=-1) > np.float32(threshold)
        return chosen

    return choose


def _no_masks(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.zeros(outputs["logits"].shape[:2], dtype=bool)
