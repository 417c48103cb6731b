"""`Predictor`: one object from image to result, whichever backend runs the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Union, overload

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ArtifactError, InputError
from detr_export.runtimes.metadata import UINT8
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.processing.detection import softmax
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.runtimes.processing.images import ImageSource, load_image
from detr_export.runtimes.processing.segmentation import (
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
    query_masks,
)
from detr_export.runtimes.processing.uint8_batch import uint8_batch
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.segmentation import Segmentation, make_segmentation
from detr_export.runtimes.session import DETR_INPUTS, DETR_OUTPUTS, Session

_NO_MASKS = "draws no masks; export a segmentation checkpoint with: detr-export onnx --task segmentation"

ImageList = Union["list[ImageSource]", "tuple[ImageSource, ...]"]

Outputs = dict[str, np.ndarray]


def require_detr(session: Session) -> None:
    """Refuses a model whose inputs and outputs are not a DETR's.

    Raises:
        ArtifactError: says what they are.
    """
    inputs = {spec.name for spec in session.inputs}
    outputs = {spec.name for spec in session.outputs}
    if "pixel_values" not in inputs or not inputs.issubset(DETR_INPUTS) or not outputs.issuperset(DETR_OUTPUTS):
        raise ArtifactError(
            f"the model is not a DETR: it maps {', '.join(sorted(inputs))} to {', '.join(sorted(outputs))}; "
            "expected pixel_values [and pixel_mask or valid_sizes] to logits and pred_boxes"
        )


class Predictor:
    """A DETR from image to result. One predictor may serve many threads.

    Args:
        session: an open session of a DETR with metadata; the predictor closes it.

    Raises:
        ArtifactError: the model is not a DETR, or says nothing about its classes and images.
    """

    def __init__(self, session: Session) -> None:
        require_detr(session)
        if session.metadata is None:
            raise ArtifactError(
                "the file has no detr-export metadata (classes, image size); export it with: detr-export onnx"
            )
        axis = 3 if session.metadata.input == UINT8 else 1
        channels = next(spec.shape[axis] for spec in session.inputs if spec.name == "pixel_values")
        if channels != 3:
            raise ArtifactError(
                f"the model takes images of {channels} channels; a Predictor feeds RGB, use the session itself"
            )
        self.session = session
        self.metadata = session.metadata
        try:
            self.processor = processor_from_dict(session.metadata.processor)
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"the file's image settings are not usable: {error}; export it again") from error
        self.id2label: Mapping[int, str] = session.metadata.id2label
        self._takes_mask = any(spec.name in ("pixel_mask", "valid_sizes") for spec in session.inputs)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        attentions: bool = False,
        spinning: Optional[bool] = None,
        trust_engine: bool = False,
    ) -> Predictor:
        """Opens a file or checkpoint; arguments and errors as in `open_session`."""
        session = open_session(path, device, threads, attentions, spinning, trust_engine)
        try:
            return cls(session)
        except BaseException:
            session.close()
            raise

    @property
    def draws_masks(self) -> bool:
        """Whether the model segments; one that does not has `detect` alone."""
        return self._has_output("pred_masks")

    @overload
    def detect(self, images: ImageSource, threshold: float = ...) -> Detections: ...
    @overload
    def detect(self, images: ImageList, threshold: float = ...) -> list[Detections]: ...
    def detect(self, images: Union[ImageSource, ImageList], threshold: float = 0.5) -> Union[Detections, list[Detections]]:
        """Finds objects.

        Args:
            images: a path, encoded bytes, a PIL image or an RGB array (height, width, 3) uint8; or a list of them, of
                any sizes, which runs as one padded batch. (A model without a pixel mask runs one for each size.)
            threshold: objects with a higher score are returned.

        Returns:
            One `Detections` for one image, a list for a list; scores, labels and boxes are those of
            `DetrImageProcessor.post_process_object_detection`.

        Raises:
            ImageError: an image cannot be read or processed.
            InputError: an image is outside the sizes that the model takes.
            BackendError: the backend failed.
        """
        _check_share("threshold", threshold)
        return self._each(images, lambda outputs, sizes: self._detections(outputs, threshold, sizes))

    @overload
    def segment_panoptic(self, images: ImageSource, threshold: float = ...) -> Segmentation: ...
    @overload
    def segment_panoptic(self, images: ImageList, threshold: float = ...) -> list[Segmentation]: ...
    def segment_panoptic(
        self,
        images: Union[ImageSource, ImageList],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Optional[Collection[int]] = None,
    ) -> Union[Segmentation, list[Segmentation]]:
        """Divides images into objects and stuff.

        Args:
            images: as in `detect`. Images of one size run as one batch: a padded one's masks would cover its padding.
            threshold, mask_threshold, overlap_mask_area_threshold: as in
                `DetrImageProcessor.post_process_panoptic_segmentation`.
            label_ids_to_fuse: classes whose regions share one segment; the model's own stuff classes when None.

        Returns:
            One `Segmentation` for one image, a list for a list. The numbers are those of the method named above, except
            that an id never names two classes.

        Raises:
            ArtifactError: the model draws no masks.
            ImageError, InputError, BackendError: as in `detect`.
        """

        def segment(outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Segmentation]:
            return self._panoptic(outputs, threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, sizes)

        _check_share("threshold", threshold)
        self._require_output("pred_masks", _NO_MASKS)
        return self._each(images, segment, padded=False)

    @overload
    def detect_and_segment(
        self,
        images: ImageSource,
        threshold: float = ...,
        panoptic_threshold: float = ...,
        mask_threshold: float = ...,
        overlap_mask_area_threshold: float = ...,
        label_ids_to_fuse: Optional[Collection[int]] = ...,
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
    ) -> list[tuple[Detections, Segmentation]]: ...
    def detect_and_segment(
        self,
        images: Union[ImageSource, ImageList],
        threshold: float = 0.0,
        panoptic_threshold: float = 0.85,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Optional[Collection[int]] = None,
    ) -> Union[tuple[Detections, Segmentation], list[tuple[Detections, Segmentation]]]:
        """Finds objects with a mask each, and divides the image, in one run of the model: what COCO's AP and PQ are made of.

        Args:
            images: as in `segment_panoptic`.
            threshold: of the detections, as in `detect`. Every one holds a full-size mask; 0 is for measuring.
            panoptic_threshold: the `threshold` of `segment_panoptic`; the default is that of facebookresearch/detr.
            mask_threshold: of both.
            overlap_mask_area_threshold, label_ids_to_fuse: as in `segment_panoptic`.

        Returns:
            For each image the `Detections` that `detect` finds with their masks, each independent of the others (see
            `query_masks`), and the `Segmentation` of `segment_panoptic`.

        Raises:
            ArtifactError, ImageError, InputError, BackendError: as in `segment_panoptic`.
        """

        def both(outputs: Outputs, sizes: list[tuple[int, int]]) -> list[tuple[Detections, Segmentation]]:
            maps = self._panoptic(
                outputs, panoptic_threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, sizes
            )
            results = []
            for index, found in enumerate(self._detections(outputs, threshold, sizes)):
                sure = _surer_than(threshold, outputs["logits"][index])
                masks = query_masks(outputs["pred_masks"][index][sure], sizes[index], mask_threshold)
                results.append((replace(found, masks=masks), maps[index]))
            return results

        for name, share in (
            ("threshold", threshold),
            ("panoptic_threshold", panoptic_threshold),
            ("mask_threshold", mask_threshold),
        ):
            _check_share(name, share)
        self._require_output("pred_masks", _NO_MASKS)
        return self._each(images, both, padded=False)

    @overload
    def segment_instances(self, images: ImageSource, threshold: float = ...) -> Segmentation: ...
    @overload
    def segment_instances(self, images: ImageList, threshold: float = ...) -> list[Segmentation]: ...
    def segment_instances(
        self,
        images: Union[ImageSource, ImageList],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
    ) -> Union[Segmentation, list[Segmentation]]:
        """Finds objects with their masks; arguments, result and errors as in `segment_panoptic`, nothing is fused."""

        def segment(outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Segmentation]:
            found = post_process_instance_segmentation(
                outputs, threshold, mask_threshold, overlap_mask_area_threshold, sizes
            )
            return [self._segmentation("instances", item["segmentation"], item["segments_info"]) for item in found]

        _check_share("threshold", threshold)
        self._require_output("pred_masks", _NO_MASKS)
        return self._each(images, segment, padded=False)

    @overload
    def segment_semantic(self, images: ImageSource) -> Segmentation: ...
    @overload
    def segment_semantic(self, images: ImageList) -> list[Segmentation]: ...
    def segment_semantic(self, images: Union[ImageSource, ImageList]) -> Union[Segmentation, list[Segmentation]]:
        """Gives every pixel a class; images, result and errors as in `segment_panoptic`, ids in the map are class ids."""

        def segment(outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Segmentation]:
            return [self._segmentation("semantic", item, []) for item in post_process_semantic_segmentation(outputs, sizes)]

        self._require_output("pred_masks", _NO_MASKS)
        return self._each(images, segment, padded=False)

    def explain(self, image: ImageSource, threshold: float = 0.5) -> tuple[Detections, np.ndarray]:
        """Finds objects in one image, and where the decoder looked for each.

        Returns:
            N detections, as `detect` gives them, and (N, h, w) float32: the last decoder layer's cross-attention of each,
            averaged over the heads, over the feature map of the image. `Detections.draw_attention` draws both.

        Raises:
            ArtifactError: the model does not return its attention.
            ImageError, InputError, BackendError: as in `detect`.
        """
        _check_share("threshold", threshold)
        self._require_output(
            "cross_attention", "does not return its attention; export it with: detr-export onnx --with-attentions"
        )

        def explained(outputs: Outputs, sizes: list[tuple[int, int]]) -> list[tuple[Detections, np.ndarray]]:
            found = self._detections(outputs, threshold, sizes)
            sure = _surer_than(threshold, outputs["logits"][0])
            return [(found[0], outputs["cross_attention"][0].mean(axis=0)[sure])]

        return self._each(image, explained, padded=False)

    def _detections(self, outputs: Outputs, threshold: float, sizes: list[tuple[int, int]]) -> list[Detections]:
        found = self.processor.post_process_object_detection(outputs, threshold, sizes)
        results = []
        for item, size in zip(found, sizes):
            names = tuple(self.id2label.get(int(label), str(label)) for label in item["labels"])
            results.append(Detections(item["scores"], item["labels"], item["boxes"], names, size))
        return results

    def _panoptic(
        self,
        outputs: Outputs,
        threshold: float,
        mask_threshold: float,
        overlap_mask_area_threshold: float,
        label_ids_to_fuse: Optional[Collection[int]],
        sizes: list[tuple[int, int]],
    ) -> list[Segmentation]:
        fuse = self.metadata.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
        found = post_process_panoptic_segmentation(
            outputs, threshold, mask_threshold, overlap_mask_area_threshold, fuse, sizes, distinct_ids=True
        )
        return [self._segmentation("panoptic", item["segmentation"], item["segments_info"]) for item in found]

    def _segmentation(self, kind: str, ids: np.ndarray, segments_info: list[dict[str, Any]]) -> Segmentation:
        return make_segmentation(kind, ids, segments_info, self.id2label)

    def _has_output(self, name: str) -> bool:
        return any(spec.name == name for spec in self.session.outputs)

    def _require_output(self, name: str, otherwise: str) -> None:
        if not self._has_output(name):
            raise ArtifactError(f"the model {otherwise}")

    def _each(
        self,
        images: Union[ImageSource, ImageList],
        finish: Callable[[Outputs, list[tuple[int, int]]], list[Any]],
        padded: bool = True,
    ) -> Any:
        """Runs images in batches and gives each its result: a list for a list, one for one.

        Args:
            images: one or several.
            finish: turns raw outputs and the (height, width) of their images into one result each.
            padded: whether images of different sizes may share a batch.
        """
        if not padded and self.processor.pad_size is not None:
            raise ArtifactError("the model's processor pads every image to pad_size, and its maps would cover the padding")
        several = isinstance(images, (list, tuple))
        pictures = [load_image(source) for source in (images if isinstance(images, (list, tuple)) else [images])]
        results: list[Any] = [None] * len(pictures)
        for indices in _batches(pictures, padded and self._takes_mask):
            chosen = [pictures[index] for index in indices]
            outputs = {name: _widened(value) for name, value in self.session.run(self._inputs(chosen)).items()}
            for index, result in zip(indices, finish(outputs, [(picture.height, picture.width) for picture in chosen])):
                results[index] = result
        return results if several else results[0]

    def _inputs(self, pictures: list[Any]) -> dict[str, np.ndarray]:
        try:
            if self.metadata.input == UINT8:
                return self._of_declared_dtypes(uint8_batch(self.processor, pictures))
            batch = self.processor.preprocess(pictures, return_tensors="np")
        except ValueError as error:  # of the settings; images raise ImageError
            raise ArtifactError(
                f"the model's image settings are not usable: {error}; correct the checkpoint's preprocessor_config.json"
            ) from error
        names = [spec.name for spec in self.session.inputs]
        if "pixel_mask" in names and "pixel_mask" not in batch:  # the settings say do_pad=False
            pixels = batch["pixel_values"]
            batch["pixel_mask"] = np.ones((pixels.shape[0], *pixels.shape[2:]), dtype=np.int64)
        return self._of_declared_dtypes(batch)

    def _of_declared_dtypes(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The session's inputs among `batch`; a file with fp16 inputs gets them so."""
        return {spec.name: batch[spec.name].astype(spec.dtype, copy=False) for spec in self.session.inputs}

    def close(self) -> None:
        """Closes the session."""
        self.session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _batches(pictures: list[Image.Image], together: bool) -> list[list[int]]:
    """Indices of the images of each batch: all of them, or one batch for each size."""
    by_size: dict[Any, list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(None if together else picture.size, []).append(index)
    return list(by_size.values())


def _widened(output: np.ndarray) -> np.ndarray:
    """float16 outputs as float32: post-processing is to round no more than the model did."""
    return output.astype(np.float32) if output.dtype == np.float16 else output


def _surer_than(threshold: float, logits: np.ndarray) -> np.ndarray:
    """bool (Q,): the queries that `post_process_object_detection` keeps, of logits (Q, C+1)."""
    return softmax(np.asarray(logits, dtype=np.float32))[:, :-1].max(axis=-1) > np.float32(threshold)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}; expected a number from 0 to 1")
