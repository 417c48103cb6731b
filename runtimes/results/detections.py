"""`Detections`, the result of detection: typed, immutable, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.processing.detection import Kept
from detr_export.runtimes.processing.images import ImageSource
from detr_export.runtimes.processing.rle import decode_rle, encode_compressed_rle
from detr_export.runtimes.results.drawing import draw_attention, draw_boxes
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle


class _Value:
    """A result that equals another of its class with the same values. It has no hash, because its arrays may be changed."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(np.array_equal(one, vars(other)[name]) for name, one in vars(self).items())

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Detection(_Value):
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


@dataclass(frozen=True, eq=False)
class Detections(_Value):
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
        except (KeyError, TypeError, ValueError, AnnotationError) as error:
            raise InputError(
                f"these are no detections ({type(error).__name__}: {error}); expected what Detections.to_dict gives"
            ) from error

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
