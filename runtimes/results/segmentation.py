"""`Segmentation`, the result of all kinds of segmentation: a map of ids, and what each id means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.processing.images import ImageSource
from detr_export.runtimes.processing.rle import encode_compressed_rle
from detr_export.runtimes.results.drawing import bands, draw_segments
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.segments import Segment

KINDS = ("panoptic", "instances", "semantic")


@dataclass(frozen=True, eq=False)
class Segmentation:
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
                    "segmentation": encode_compressed_rle(self.mask(segment)),
                }
                for segment in self.segments
            ],
        }

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
    if kind not in KINDS:
        raise InputError(f"the kind of segmentation is {kind!r}; expected one of {', '.join(KINDS)}")

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


def _extent(mask: np.ndarray) -> tuple[int, tuple[int, int, int, int]]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, (0, 0, 0, 0)
    return int(mask.sum()), (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _xywh(segment: Segment) -> list[int]:
    x_min, y_min, x_max, y_max = segment.box
    return [x_min, y_min, x_max - x_min, y_max - y_min]
