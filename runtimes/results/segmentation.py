"""`Segmentation`, the result of all kinds of segmentation: a map of ids, and what each id means."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.processing.detection import TargetSizes
from detr_export.runtimes.processing.images import ImageSource
from detr_export.runtimes.processing.rle import decode_rle, encode_compressed_rle, require_mask_pixels
from detr_export.runtimes.processing.segmentation import (
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
)
from detr_export.runtimes.processing.torch_tensors import outputs_as_arrays, sizes_as_arrays, values_of
from detr_export.runtimes.results.columns import OBJECT_COLUMNS
from detr_export.runtimes.results.drawing import bands, draw_segments
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.interop.labelme import labelme_document
from detr_export.runtimes.results.interop.yolo import yolo_lines
from detr_export.runtimes.results.other_libraries import for_pandas, for_supervision
from detr_export.runtimes.results.segments import Segment
from detr_export.runtimes.results.values import Value

KINDS = ("panoptic", "instances", "semantic")


@dataclass(frozen=True, eq=False)
class Segmentation(Value):
    """The segments of one image, in the order of their ids."""

    kind: str  # "panoptic", "instances" or "semantic"
    map: np.ndarray  # (height, width) int32, segment ids, 0 = no segment; in semantic maps the ids are class ids
    segments: tuple[Segment, ...]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the original image, pixels."""
        return self.map.shape[0], self.map.shape[1]

    def __len__(self) -> int:
        return len(self.segments)

    def mask(self, segment: Segment) -> np.ndarray:
        """The pixels of a segment: (height, width) bool."""
        return self.map == segment.id

    def of_classes(self, names: Collection[str]) -> Segmentation:
        """The segments whose class has one of the names. In the map, the pixels of the others become 0.

        Raises:
            InputError: the map is semantic, and so has no value for pixels of no class.
        """
        if self.kind == "semantic":
            raise InputError("a semantic map gives every pixel a class; leave classes (--classes) out")
        kept = tuple(segment for segment in self.segments if segment.name in names)
        ids = np.zeros_like(self.map)
        wanted = [segment.id for segment in kept]
        for rows in bands(self.map):
            np.copyto(ids[rows], self.map[rows], where=np.isin(self.map[rows], wanted))
        return Segmentation(self.kind, ids, kept)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `image_size`, `kind`, and the segments, with their masks in COCO's run-length encoding."""
        return {
            "image_size": list(self.image_size),
            "kind": self.kind,
            "segments": [
                {
                    "id": segment.id,
                    "label": segment.label,
                    "name": segment.name,
                    "score": segment.score,
                    "area": segment.area,
                    "box": list(segment.box),
                    "was_fused": segment.was_fused,
                    "segmentation": encode_compressed_rle(self.mask(segment)),
                }
                for segment in self.segments
            ],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Segmentation:
        """The segmentation of which `to_dict` made a document, also after a way through JSON.

        Ids in the map that belong to no segment are not in the document; their pixels become 0.

        Args:
            document: other keys, such as those of a file in predictions.json, are ignored. `was_fused` may be missing, as it
                is in older documents.

        Raises:
            InputError: a field is missing or of another type, or two segments share a pixel or an id.
        """
        try:
            height, width = map(int, document["image_size"])
            require_mask_pixels(height, width, "the number of pixels of the map")
            kind = _checked_kind(document["kind"])
            ids = np.zeros((height, width), dtype=np.int32)
            taken = np.zeros((height, width), dtype=bool)
            segments = []
            for item in document["segments"]:
                segments.append(_segment_of(item))
                mask = decode_rle(item["segmentation"], (height, width)).astype(bool)
                if (taken & mask).any():
                    raise ValueError(f"segment {segments[-1].id} has pixels of another one")
                taken |= mask
                ids[mask] = segments[-1].id
            if len({segment.id for segment in segments}) < len(segments):
                raise ValueError("two segments have one id")
        except (KeyError, TypeError, ValueError, OverflowError, AnnotationError, InputError) as error:
            raise InputError(
                f"this is no segmentation ({type(error).__name__}: {error}); expected what Segmentation.to_dict gives"
            ) from error
        return cls(kind, ids, tuple(segments))

    @classmethod
    def from_transformers(cls, result: Any, id2label: Mapping[int, str], kind: str) -> Segmentation:
        """What `post_process_panoptic_segmentation`, `..._instance_...` or `..._semantic_...` of transformers, or of our
        processors, returns for one image. Ids, labels and scores stay as they are, and segments that share an id are joined.

        Args:
            result: a map (height, width) of classes if the kind is semantic; else `segmentation`, a map of ids, and
                `segments_info`. Maps are tensors or arrays.
            id2label: names of the classes, as in `model.config.id2label`.
            kind: "panoptic", "instances" or "semantic".

        Raises:
            InputError: the kind is unknown, the result has another form, or two classes share an id, which transformers does
                where classes are fused. `from_outputs` does not.
        """
        if _checked_kind(kind) == "semantic":
            ids, infos = _map_of(result, "a map (height, width) of classes"), []
        else:
            expected = f"segmentation (height, width) and segments_info, as for the kind {kind}"
            if not isinstance(result, Mapping) or not {"segmentation", "segments_info"} <= set(result):
                has = sorted(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
                raise InputError(f"the result is {has}; expected {expected}")
            ids, infos = _map_of(result["segmentation"], expected), result["segments_info"]
        labels: dict[int, int] = {}
        for info in infos:
            if labels.setdefault(info["id"], info["label_id"]) != info["label_id"]:
                raise InputError(
                    f"two classes have the id {info['id']}; use Segmentation.from_outputs, which gives each its own"
                )
        return make_segmentation(kind, ids, infos, id2label)

    @classmethod
    def from_outputs(
        cls,
        outputs: Any,
        image_sizes: TargetSizes,
        id2label: Mapping[int, str],
        kind: str,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] = (),
    ) -> list[Segmentation]:
        """The segments in the raw outputs of a DETR, such as transformers' `DetrSegmentationOutput`; one for each image.

        Args:
            outputs: `logits` (B, Q, C+1) and `pred_masks` (B, Q, h, w), as attributes or keys, tensors or arrays.
            image_sizes: (height, width) of each image, pixels.
            id2label: names of the classes, as in `model.config.id2label`.
            kind: "panoptic", "instances" or "semantic".
            threshold, mask_threshold, overlap_mask_area_threshold: as in `post_process_panoptic_segmentation`; not for
                semantic maps.
            label_ids_to_fuse: classes whose segments share one id; for panoptic maps only.

        Raises:
            InputError: an output is missing or has another shape, there is not one size for each image, the kind is unknown,
                or an option does not belong to it.

        Numbers: those of transformers' methods; a pixel may differ where two masks tie within float32 rounding, and scores
        by 1e-6. Two classes never share an id.
        """
        # What does not apply is refused
        thresholds = (threshold, mask_threshold, overlap_mask_area_threshold)
        if _checked_kind(kind) == "semantic" and thresholds != (0.5, 0.5, 0.8):
            raise InputError("a semantic map gives every pixel a class; leave the thresholds out")
        if kind != "panoptic" and label_ids_to_fuse:
            raise InputError(f"classes are fused in panoptic maps only; leave label_ids_to_fuse out with the kind {kind}")

        arrays = outputs_as_arrays(outputs)[0]
        sizes = [(int(height), int(width)) for height, width in sizes_as_arrays(image_sizes)]
        if kind == "semantic":
            maps = post_process_semantic_segmentation(arrays, sizes, dtype=np.int32)
            return [make_segmentation(kind, ids, [], id2label) for ids in maps]
        if kind == "instances":
            found = post_process_instance_segmentation(arrays, *thresholds, sizes)
        else:
            found = post_process_panoptic_segmentation(arrays, *thresholds, label_ids_to_fuse, sizes, distinct_ids=True)
        return [make_segmentation(kind, item["segmentation"], item["segments_info"], id2label) for item in found]

    def to_supervision(self) -> Any:
        """`supervision.Detections` with `mask`, `xyxy` around it, `class_id`, `confidence` and `data["class_name"]`.

        As supervision has it, the maxima of `xyxy` are the last pixels of the mask, one less than in `Segment.box`.
        `confidence` is None for semantic maps. Ids and `was_fused` are left out.

        Raises:
            BackendError: supervision cannot be imported.
        """
        scores = [segment.score for segment in self.segments]
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        for mask, pixels in zip(masks, self._masks()):
            mask[:] = pixels
        return for_supervision().supervision_of_masks(
            masks,
            None if self.kind == "semantic" else scores,
            [segment.label for segment in self.segments],
            [segment.name for segment in self.segments],
        )

    def to_pandas(self, file: Optional[str] = None) -> Any:
        """A `pandas.DataFrame` with a row for each segment. Scores of semantic maps are NaN. The map is left out.

        The columns are those of `Detections.to_pandas`, then `id` and `area`, int64, and `was_fused`, bool.

        Args:
            file: what the rows call the picture, in a first column `file`; None for no such column.

        Raises:
            BackendError: pandas cannot be imported.
        """
        found = self.segments
        scores = [np.nan if segment.score is None else segment.score for segment in found]
        kinds = (np.int64, str, *[np.float32] * 5)
        values = ([item.label for item in found], [item.name for item in found], scores, *self._boxes().T)
        columns: dict[str, tuple[type, Any]] = {} if file is None else {"file": (str, [file] * len(found))}
        columns.update({name: (kind, column) for name, kind, column in zip(OBJECT_COLUMNS, kinds, values)})
        columns["id"] = (np.int64, [item.id for item in found])
        columns["area"] = (np.int64, [item.area for item in found])
        columns["was_fused"] = (bool, [item.was_fused for item in found])
        return for_pandas().frame_of(columns)

    def to_yolo(self, confidence: bool = False) -> str:
        """The text file of a picture for YOLO's tools: a polygon for each segment, as in `Detections.to_yolo`.

        Args:
            confidence: whether each line ends with the score.

        Raises:
            InputError: scores are wanted of a semantic map, which has none.
        """
        scores = None
        if confidence:
            if self.kind == "semantic":
                raise InputError("segments of a semantic map have no scores; leave confidence out")
            scores = [segment.score or 0.0 for segment in self.segments]
        labels = [segment.label for segment in self.segments]
        return yolo_lines(self.image_size, labels, self._boxes(), self._masks(), scores)

    def to_labelme(self, image_path: str) -> dict[str, Any]:
        """The document of LabelMe for the picture: a polygon for each part of each segment, as in `Detections.to_labelme`.

        Args:
            image_path: of the picture, from the folder in which the document will lie.
        """
        names, scores = [segment.name for segment in self.segments], [segment.score for segment in self.segments]
        return labelme_document(image_path, self.image_size, names, self._boxes(), scores, self._masks())

    def _boxes(self) -> np.ndarray:
        return np.array([segment.box for segment in self.segments], dtype=np.float32).reshape(-1, 4)

    def _masks(self) -> Iterator[np.ndarray]:
        return (self.mask(segment) for segment in self.segments)

    def to_coco(self, image_id: Union[int, str]) -> Union[dict[str, Any], list[dict[str, Any]]]:
        """The content of a COCO results file for this image.

        Returns:
            Panoptic: one dictionary with `segments_info` and with `file_name`, the name under which the picture of
            `panoptic_png` must be saved. Instances and semantic: one entry for each segment, with its run-length encoding.
        """
        if self.kind == "panoptic":
            return {
                "image_id": image_id,
                "file_name": f"{image_id}.png",
                "segments_info": [
                    {
                        "id": segment.id,
                        "category_id": segment.label,
                        "area": segment.area,
                        "bbox": _xywh(segment),
                        "iscrowd": 0,
                    }
                    for segment in self.segments
                ],
            }
        return [
            {
                "image_id": image_id,
                "category_id": segment.label,
                "segmentation": encode_compressed_rle(self.mask(segment)),
                "bbox": _xywh(segment),
                **({} if segment.score is None else {"score": segment.score}),
            }
            for segment in self.segments
        ]

    def panoptic_png(self) -> Image.Image:
        """The map as a picture in COCO's panoptic format: id = red + 256 green + 65536 blue."""
        colors = np.empty((*self.image_size, 3), dtype=np.uint8)
        for rows in bands(self.map):
            ids = self.map[rows].astype(np.uint32)
            colors[rows] = np.stack([ids % 256, ids // 256 % 256, ids // 65536 % 256], axis=-1)
        return Image.fromarray(colors)

    def draw(self, image: ImageSource, style: DrawingStyle = PLAIN) -> Image.Image:
        """A copy of `image` with a colour, an outline and a name for each segment.

        Args:
            image: the image that was segmented.
            style: how names look.

        Raises:
            ImageError: the image cannot be read, or has another size than the image that was segmented.
            InputError: the style has a line width.
        """
        return draw_segments(image, self.map, self.segments, style)


def make_segmentation(
    kind: str, ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], id2label: Mapping[int, str]
) -> Segmentation:
    """Makes one typed result from what post-processing returns.

    Args:
        kind: one of `KINDS`.
        ids: (height, width), segment ids; negative ids become 0 unless `kind` is semantic. int32 is not copied.
        segments_info: `id`, `label_id`, `score` and `was_fused` of each query's segment. Segments with the same id are
            joined, with the best of their scores. It is ignored for semantic maps, where the ids are the classes.
        id2label: names of the classes.

    Raises:
        InputError: the kind is unknown.
    """
    _checked_kind(kind)

    # The label and score of each id
    ids = ids.astype(np.int32, copy=False)
    if kind == "semantic":
        labels = sorted({int(label) for rows in bands(ids) for label in np.unique(ids[rows])})
        found = {label: (label, None, False) for label in labels}
    else:
        if ids.min(initial=0) < 0:
            ids = np.maximum(ids, 0)
        found = {}
        for info in segments_info:
            score = max(info["score"], found.get(info["id"], (0, 0.0, False))[1] or 0.0)
            found[info["id"]] = (info["label_id"], score, info["was_fused"])

    # The segments that have pixels
    segments = []
    for index in sorted(found):
        label, score, fused = found[index]
        area, box = _extent(ids == index)
        if area:
            segments.append(Segment(index, label, id2label.get(label, str(label)), score, area, box, fused))
    return Segmentation(kind, ids, tuple(segments))


def _checked_kind(kind: Any) -> str:
    if kind not in KINDS:
        raise InputError(f"the kind of segmentation is {kind!r}; expected one of {', '.join(KINDS)}")
    return str(kind)


def _segment_of(item: Mapping[str, Any]) -> Segment:
    x_min, y_min, x_max, y_max = map(int, item["box"])
    return Segment(
        id=int(item["id"]),
        label=int(item["label"]),
        name=str(item["name"]),
        score=None if item["score"] is None else float(item["score"]),
        area=int(item["area"]),
        box=(x_min, y_min, x_max, y_max),
        was_fused=bool(item.get("was_fused", False)),
    )


def _map_of(value: Any, expected: str) -> np.ndarray:
    ids = values_of(value)
    if ids.ndim != 2 or ids.dtype.kind not in "iuf":
        raise InputError(f"the map has shape {ids.shape} and type {ids.dtype}; expected {expected}")
    return ids


def _extent(mask: np.ndarray) -> tuple[int, tuple[int, int, int, int]]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, (0, 0, 0, 0)
    return int(mask.sum()), (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _xywh(segment: Segment) -> list[int]:
    x_min, y_min, x_max, y_max = segment.box
    return [x_min, y_min, x_max - x_min, y_max - y_min]
