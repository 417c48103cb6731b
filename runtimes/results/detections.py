"""`Detections`, the result of detection: typed, immutable, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.processing.detection import Kept, TargetSizes, keep_detections
from detr_export.runtimes.processing.images import ImageSource
from detr_export.runtimes.processing.rle import decode_rle, encode_compressed_rle
from detr_export.runtimes.processing.torch_tensors import outputs_as_arrays, probabilities_of, sizes_as_arrays, values_of
from detr_export.runtimes.results.columns import OBJECT_COLUMNS
from detr_export.runtimes.results.drawing import draw_attention, draw_boxes
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.interop.labelme import labelme_document
from detr_export.runtimes.results.interop.yolo import yolo_lines
from detr_export.runtimes.results.other_libraries import for_pandas, for_supervision
from detr_export.runtimes.results.values import Value


@dataclass(frozen=True, eq=False)
class Detection(Value):
    """One object of `Detections`."""

    label: int  # id of its class
    name: str  # of its class
    score: float  # in (0, 1]
    box: tuple[float, float, float, float]  # (x_min, y_min, x_max, y_max) in pixels of the original image
    mask: Optional[np.ndarray]  # (height, width) bool, at that size, or None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `label`, `name`, `score`, `box`, and with a mask `segmentation`, its run-length encoding as in COCO."""
        document: dict[str, Any] = {"label": self.label, "name": self.name, "score": self.score, "box": [*self.box]}
        if self.mask is not None:
            document["segmentation"] = encode_compressed_rle(self.mask)
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Detection:
        """The object of which `to_dict` made a document. Raises InputError if a field is missing or of another type."""
        try:
            x_min, y_min, x_max, y_max = map(float, document["box"])
            masks = _masks_of([document])
            return cls(
                int(document["label"]),
                str(document["name"]),
                float(document["score"]),
                (x_min, y_min, x_max, y_max),
                None if masks is None else masks[0],
            )
        except (KeyError, TypeError, ValueError, OverflowError, AnnotationError) as error:
            raise not_ours("detection", "Detection", error) from error


@dataclass(frozen=True, eq=False)
class Detections(Value):
    """The objects found in one image, in the order of the model's queries. Iterating gives a `Detection` for each."""

    scores: np.ndarray  # (N,) float32 in (0, 1]
    labels: np.ndarray  # (N,) int64, ids of the checkpoint's classes
    boxes: np.ndarray  # (N, 4) float32, (x_min, y_min, x_max, y_max) in pixels of the original image
    names: tuple[str, ...]  # N class names
    image_size: tuple[int, int]  # (height, width) of the original image, pixels
    masks: Optional[np.ndarray] = None  # (N, height, width) bool, at that size; None if the model or the call gives no masks

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        masks = [None] * len(self) if self.masks is None else self.masks
        for label, name, score, box, mask in zip(self.labels, self.names, self.scores, self.boxes, masks):
            x_min, y_min, x_max, y_max = map(float, box)
            yield Detection(int(label), name, float(score), (x_min, y_min, x_max, y_max), mask)

    def select(self, which: np.ndarray) -> Detections:
        """Some of the objects.

        Args:
            which: bool (N,), or int (M,), the numbers of the objects in their new order.
        """
        which = np.asarray(which)
        numbers = np.flatnonzero(which) if which.dtype == bool else which.astype(np.int64)
        masks = None if self.masks is None else self.masks[numbers]
        names = tuple(self.names[number] for number in numbers)
        return Detections(self.scores[numbers], self.labels[numbers], self.boxes[numbers], names, self.image_size, masks)

    def of_classes(self, names: Collection[str]) -> Detections:
        """The objects whose class has one of the names. `require_classes` refuses names that a model does not have."""
        return self.select(np.array([name in names for name in self.names], dtype=bool))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `{"image_size": [height, width], "detections": [...]}`, with what `Detection.to_dict` says of each."""
        return {"image_size": list(self.image_size), "detections": [item.to_dict() for item in self]}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Detections:
        """The detections of which `to_dict` made a document, also after a way through JSON. Every number is the same again.

        Args:
            document: other keys, such as those of a file in predictions.json, are ignored. Without detections there are no
                masks.

        Raises:
            InputError: a field is missing or of another type.
        """
        try:
            height, width = document["image_size"]
            items = document["detections"]
            return cls(
                np.array([item["score"] for item in items], dtype=np.float32),
                np.array([item["label"] for item in items], dtype=np.int64),
                np.array([item["box"] for item in items], dtype=np.float32).reshape(len(items), 4),
                tuple(str(item["name"]) for item in items),
                (int(height), int(width)),
                _masks_of(items),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AnnotationError) as error:
            raise InputError(
                f"these are no detections ({type(error).__name__}: {error}); expected what Detections.to_dict gives"
            ) from error

    @classmethod
    def from_transformers(
        cls, result: Mapping[str, Any], image_size: tuple[int, int], id2label: Mapping[int, str]
    ) -> Detections:
        """What `post_process_object_detection` of transformers, or of our processors, returns for one image.

        Args:
            result: `scores` (N,), `labels` (N,) and `boxes` (N, 4), (x_min, y_min, x_max, y_max) in pixels, so that it must
                have been made with `target_sizes`; tensors or arrays. The numbers stay as they are; boxes are not clipped.
            image_size: (height, width) of the image, pixels.
            id2label: names of the classes, as in `model.config.id2label`.

        Raises:
            InputError: one of the three is missing or has another shape.
        """
        return make_detections(_kept_by_transformers(result), _checked_size(image_size), id2label, clip=False)

    @classmethod
    def from_outputs(
        cls, outputs: Any, image_sizes: TargetSizes, id2label: Mapping[int, str], threshold: float = 0.5
    ) -> list[Detections]:
        """The detections in the raw outputs of a DETR, such as `DetrObjectDetectionOutput` of transformers.

        Args:
            outputs: `logits` (B, Q, C+1) and `pred_boxes` (B, Q, 4), as attributes or keys, tensors or arrays.
            image_sizes: (height, width) of each image, pixels.
            id2label: names of the classes, as in `model.config.id2label`.
            threshold: lowest score, exclusive.

        Raises:
            InputError: an output is missing or has another shape, or there is not one size for each image.

        Returns:
            One for each image. Boxes are not clipped.

        Numbers: those of `post_process_object_detection` of transformers. They are the same for tensors of PyTorch; for
        arrays scores differ by the float32 rounding of `exp` at most.
        """
        sizes = sizes_as_arrays(image_sizes)
        probabilities = probabilities_of(outputs)
        found = keep_detections(outputs_as_arrays(outputs)[0], threshold, sizes, probabilities)
        return [make_detections(kept, _checked_size(size), id2label, clip=False) for kept, size in zip(found, sizes)]

    def to_supervision(self) -> Any:
        """`supervision.Detections` with the same numbers: `xyxy`, `confidence`, `class_id`, `mask`, `data["class_name"]`.

        The size of the image is left out. Arrays are copies.

        Raises:
            BackendError: supervision cannot be imported.
        """
        return for_supervision().supervision_of_boxes(self.boxes, self.scores, self.labels, self.names, self.masks)

    def to_pandas(self, file: Optional[str] = None) -> Any:
        """A `pandas.DataFrame` with a row for each object. Masks and the size of the image are left out.

        `label` is int64, `class` is text, and `score`, `x_min`, `y_min`, `x_max` and `y_max` are float32.

        Args:
            file: what the rows call the picture, in a first column `file`; None for no such column.

        Raises:
            BackendError: pandas cannot be imported.
        """
        kinds = (np.int64, str, *[np.float32] * 5)
        values = (self.labels, self.names, self.scores, *self.boxes.T)
        columns = {name: (kind, column) for name, kind, column in zip(OBJECT_COLUMNS, kinds, values)}
        return for_pandas().frame_of(columns if file is None else {"file": (str, [file] * len(self)), **columns})

    def to_yolo(self, confidence: bool = False) -> str:
        """The text file of a picture for YOLO's tools: `class center_x center_y width height` for each object, from 0 to 1.

        Objects with masks are polygons, `class x1 y1 x2 y2 ...`, one for each object: lines without width join its parts and
        its holes, and its pixels are exactly those of the mask. A mask without pixels gives the corners of its box.

        Args:
            confidence: whether each line ends with the score. Tools that read labels for training do not take that.
        """
        scores = [*self.scores] if confidence else None
        return yolo_lines(self.image_size, self.labels.tolist(), self.boxes, self.masks, scores)

    def to_labelme(self, image_path: str) -> dict[str, Any]:
        """The document of LabelMe for the picture: a rectangle for each object; with masks, a polygon for each of its parts.

        Parts of one object share a `group_id`. A hole is joined to the outline around it by a line without width.

        Args:
            image_path: of the picture, from the folder in which the document will lie.
        """
        scores = self.scores.tolist()
        return labelme_document(image_path, self.image_size, self.names, self.boxes, scores, self.masks)

    def to_coco(self, image_id: Union[int, str]) -> list[dict[str, Any]]:
        """Entries of a COCO results file: `bbox` is [x, y, width, height] in pixels, and `category_id` is the label.

        If there are masks, `segmentation` is the compressed run-length encoding of each.
        """
        entries: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                "score": float(score),
            }
            for label, score, box in zip(self.labels, self.scores, self.boxes)
        ]
        if self.masks is not None:
            for entry, mask in zip(entries, self.masks):
                entry["segmentation"] = encode_compressed_rle(mask)
        return entries

    def draw(self, image: ImageSource, style: DrawingStyle = PLAIN) -> Image.Image:
        """A copy of `image` with a box and a caption for each object.

        Args:
            image: the image of the detections.
            style: how they look; sizes follow from the size of the image.

        Raises:
            ImageError: the image cannot be read, or has another size than the image of the detections.
        """
        return draw_boxes(image, self.image_size, self.boxes, self.scores, self.labels, self.names, style)

    def draw_attention(
        self, image: ImageSource, attention: np.ndarray, columns: int = 3, cell_width: int = 480
    ) -> Image.Image:
        """A sheet with one copy of `image` for each object, the best first: where the decoder looked and what it found.

        Args:
            image: the image of the detections.
            attention: float32 (N, h, w), weights over the feature map, from `Predictor.explain`.
            columns: cells in a row.
            cell_width: width of a cell, pixels.

        Raises:
            ImageError: as in `draw`.
        """
        return draw_attention(
            image, self.image_size, self.boxes, self.scores, self.labels, self.names, attention, columns, cell_width
        )


def not_ours(what: str, kind: str, error: Exception) -> InputError:
    """The error for a document that is not one of `to_dict`."""
    return InputError(f"this is no {what} ({type(error).__name__}: {error}); expected what {kind}.to_dict gives")


def _kept_by_transformers(result: Mapping[str, Any]) -> Kept:
    expected = "expected what post_process_object_detection returns for one image: scores (N,), labels (N,) and boxes (N, 4)"
    if not isinstance(result, Mapping) or not {"scores", "labels", "boxes"} <= set(result):
        has = sorted(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise InputError(f"the result is {has}; {expected}")
    scores, boxes = (values_of(result[name]).astype(np.float32) for name in ("scores", "boxes"))
    labels = values_of(result["labels"]).astype(np.int64)
    if scores.ndim != 1 or labels.shape != scores.shape or boxes.shape != (len(scores), 4):
        raise InputError(
            f"scores, labels and boxes have shapes {scores.shape}, {labels.shape} and {boxes.shape}; {expected}"
        )
    return Kept(np.arange(len(scores)), scores, labels, boxes)


def _checked_size(size: Sequence[Any]) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in values_of(size))
    except (TypeError, ValueError):
        raise InputError(f"the size of an image is {size!r}; expected (height, width) in pixels") from None
    return height, width


def _masks_of(items: Sequence[Mapping[str, Any]]) -> Optional[np.ndarray]:
    if not any("segmentation" in item for item in items):
        return None
    return np.stack([decode_rle(item["segmentation"]).astype(bool) for item in items])


def make_detections(kept: Kept, image_size: tuple[int, int], id2label: Mapping[int, str], clip: bool) -> Detections:
    """Makes the result for one image.

    Args:
        kept: what post-processing kept.
        image_size: (height, width) of the image, pixels.
        id2label: names of the classes.
        clip: whether boxes end at the edges of the image. A box that lies wholly outside then has no area.
    """
    names = tuple(id2label.get(int(label), str(label)) for label in kept.labels)
    height, width = image_size
    edges = np.array([width, height, width, height], dtype=np.float32)
    boxes = kept.boxes.clip(0, edges) if clip else kept.boxes
    return Detections(kept.scores, kept.labels, boxes, names, image_size)
