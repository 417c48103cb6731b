"""One pass over the records of a COCO file and the headers of its pictures, which finds all that training would stumble on.

Only what training reads is checked. Pixels are not decoded: damage behind a header, and a panoptic segment without a pixel,
show when the picture is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from detr_export.data.yolo import PLACE, YOLO_LINE
from detr_export.runtimes.errors import AnnotationError, DatasetError, DetrError
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.annotations.panoptic import panoptic_path, require_segment_ids
from detr_export.runtimes.processing.images import read_image_size
from detr_export.runtimes.progress import Progress

Record = Mapping[str, Any]
Size = tuple[int, int]  # (height, width), pixels
_T = TypeVar("_T")

_OVERHANG = 1.0  # pixels that a box may reach beyond its picture: COCO's are rounded, other tools count from 1
_LISTED = 10  # problems that a message lists
_THREADS = 8  # that read headers: on a disk far away they wait for each other's files
_TOLD_EVERY = 500  # pictures


@dataclass
class Findings:
    """What is good, and what is wrong with the rest."""

    sizes: dict[int, Size] = field(default_factory=dict)  # of each good image, by its id
    paths: dict[int, Path] = field(default_factory=dict)  # of each good image, by its id
    # Of good images: annotations, or panoptic records with the good ones among their segments; crowds are left out.
    annotations: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a line each
    bad_images: int = 0
    bad_annotations: int = 0  # objects or segments, those of bad images included

    def error(self, file: Path, reason: str) -> DatasetError:
        """The error that lists the first problems.

        Args:
            file: the annotation file.
            reason: what follows from the problems, or what mends them.
        """
        count = len(self.problems)
        told = f"{count} {'problem' if count == 1 else 'problems'}" + (
            f", here the first {_LISTED}" if count > _LISTED else ""
        )
        lines = [f"  {' '.join(problem.split())}" for problem in self.problems[:_LISTED]]
        return DatasetError("\n".join([f"{file} has {told}; {reason}:", *lines]))


def check_records(
    document: Record, folder: Path, masks: Path | None, categories: Collection[int], progress: Progress
) -> Findings:
    """Checks images and annotations.

    Args:
        document: a COCO file with lists under `images` and `annotations`.
        folder: of the images.
        masks: the folder of the PNGs of a panoptic file; None for detection.
        categories: the ids that a `category_id` may be.
        progress: is told how many pictures were looked at.
    """
    findings = Findings()
    known = _check_images(findings, document["images"], folder, progress)
    if masks is None:
        _check_instances(findings, document["annotations"], known, categories)
    else:
        _check_panoptic(findings, document["annotations"], known, categories, masks, progress)
    findings.bad_images = len(document["images"]) - len(findings.paths)
    return findings


def _check_images(findings: Findings, values: Sequence[Any], folder: Path, progress: Progress) -> set[int]:
    """Fills in `paths` and `sizes`, and returns the ids of all images, good or bad."""
    # The records. Of images that share an id or a file none is good: each may lack objects that the other has.
    wrong: dict[int, str] = {}  # what is wrong, by the position in the list
    images: dict[int, tuple[int, Record]] = {}  # id and record, by the position
    first: dict[int | str, int] = {}  # position of the first image with an id or a file name
    shared: set[int] = set()
    ids = set()
    for index, value in enumerate(values):
        where = f"images[{index}]"
        try:
            item = checks.record(value, where)
            image_id = checks.integer(item, "id", where)
            ids.add(image_id)
            where = f"image {image_id}"
            repeated = _repeated(first, image_id, index, f"{where}: id is that of", "images", shared)
            name = checks.file_name(item, where, f"a picture in {folder}")
            repeated = _repeated(first, name, index, f"{where}: file_name {name} is that of", "images", shared) or repeated
            for side in ("height", "width"):
                if side in item and checks.integer(item, side, where) < 1:
                    raise AnnotationError(f"{where}: {side} is {item[side]}: expected at least 1 pixel")
            if repeated:
                raise AnnotationError(repeated)
            images[index] = image_id, item
        except AnnotationError as error:
            wrong[index] = str(error)

    # The headers of the pictures, and whether the records say the same.
    paths = [folder / item["file_name"] for _, item in images.values()]
    if paths:
        progress.stage(f"checking {len(paths)} pictures")
    sizes = _in_threads(read_image_size, paths, progress)
    for (index, (image_id, item)), path, size in zip(images.items(), paths, sizes, strict=True):
        if isinstance(size, DetrError):
            wrong[index] = f"image {image_id}: file_name: {size}"
            continue
        height, width = size
        told = item.get("width", width), item.get("height", height)
        if told != (width, height):
            wrong[index] = (
                f"image {image_id}: width and height are {told[0]}x{told[1]}: expected {width}x{height}, which {path} has "
                "when it is upright (EXIF); correct them and the boxes"
            )
        elif index not in shared:
            findings.paths[image_id], findings.sizes[image_id] = path, size
    findings.problems += [wrong[index] for index in sorted(wrong)]
    return ids


def _check_instances(findings: Findings, values: Sequence[Any], known: set[int], categories: Collection[int]) -> None:
    first: dict[int | str, int] = {}
    for index, value in enumerate(values):
        where = f"annotations[{index}]"
        try:
            item = checks.record(value, where)
            if item.get("id") is not None:
                annotation_id = checks.integer(item, "id", where)
                where = str(item.get(PLACE, f"annotation {annotation_id}"))
                repeated = _repeated(first, annotation_id, index, f"{where}: id is that of", "annotations")
                if repeated:
                    raise AnnotationError(repeated)
            image_id = _image_id(item, where, known)
            if PLACE in item and isinstance(item.get("bbox"), str):
                raise AnnotationError(f"{where}: {item['bbox']!r:.80} is no line of a YOLO file: expected {YOLO_LINE}")
            is_crowd = "iscrowd" in item and checks.crowd_flag(item, where)
            if not is_crowd:
                _check_object(item, where, categories, findings.sizes.get(image_id))
        except AnnotationError as error:
            findings.problems.append(str(error))
            findings.bad_annotations += 1
            continue
        if is_crowd:
            continue
        if image_id in findings.paths:
            findings.annotations.append(item)
        else:
            findings.bad_annotations += 1


def _check_panoptic(
    findings: Findings,
    values: Sequence[Any],
    known: set[int],
    categories: Collection[int],
    masks: Path,
    progress: Progress,
) -> None:
    # The records. One that is not good leaves its image without masks, so the image is not good either.
    first: dict[int | str, int] = {}  # position of the first record with an image id or a file name
    shared: set[int] = set()
    bad: set[int] = set()
    records: list[tuple[int, Record, Path]] = []
    for index, value in enumerate(values):
        where, image_id = f"annotations[{index}]", None
        try:
            item = checks.record(value, where)
            image_id = _image_id(item, where, known)
            where = f"image {image_id}"
            repeated = _repeated(
                first, image_id, index, f"{where}: its record is a second one beside", "annotations", shared
            )
            path = panoptic_path(item, where, masks)
            name = item["file_name"]
            repeated = repeated or _repeated(
                first, name, index, f"{where}: file_name {name} is that of", "annotations", shared
            )
            if repeated:
                raise AnnotationError(repeated)
            checks.records(item, "segments_info", where)
            records.append((image_id, item, path))
        except AnnotationError as error:
            findings.problems.append(str(error))
            segments = value.get("segments_info") if isinstance(value, Mapping) else None
            findings.bad_annotations += len(segments) if isinstance(segments, list) else 0
            if image_id is not None:
                bad.add(image_id)

    bad |= {values[index]["image_id"] for index in shared}

    # The headers of the PNGs.
    def png_of(record: tuple[int, Record, Path]) -> None:
        image_id, _, path = record
        if image_id in findings.sizes:
            require_segment_ids(path, findings.sizes[image_id], f"image {image_id}: file_name")

    if records:
        progress.stage(f"checking {len(records)} PNGs")
    for (image_id, _, _), found in zip(records, _in_threads(png_of, records, progress), strict=True):
        if isinstance(found, DetrError):
            findings.problems.append(str(found))
            bad.add(image_id)
    for image_id in bad:
        findings.paths.pop(image_id, None)
        findings.sizes.pop(image_id, None)

    # The segments.
    for image_id, item, _ in records:
        good = []
        for segment in item["segments_info"]:
            where = f"image {image_id}, segment {checks.told(segment.get('id'))}"
            try:
                checks.integer(segment, "id", where)
                if checks.crowd_flag(segment, where):
                    continue
                _check_object(segment, where, categories, findings.sizes.get(image_id))
                checks.area(segment, where)
                good.append(segment)
            except AnnotationError as error:
                findings.problems.append(str(error))
                findings.bad_annotations += 1
        if image_id not in findings.paths:
            findings.bad_annotations += len(good)
        elif good:
            findings.annotations.append({**item, "segments_info": good})


def _image_id(item: Record, where: str, known: set[int]) -> int:
    image_id = checks.integer(item, "image_id", where)
    if image_id not in known:
        raise AnnotationError(f"{where}: image_id is {image_id}: expected the id of an image; none of images has it")
    return image_id


def _check_object(item: Record, where: str, categories: Collection[int], size: Size | None) -> None:
    """Category and box; `size` is that of the image, None where it is not known."""
    category = checks.integer(item, "category_id", where)
    if category not in categories:
        some = ", ".join(map(str, sorted(categories)[:_LISTED])) + (", ..." if len(categories) > _LISTED else "")
        raise AnnotationError(f"{where}: category_id is {category}: expected the id of a category ({some})")
    x, y, box_width, box_height = checks.box(item, where)
    if size is None:
        return
    height, width = size
    right, bottom = x + box_width, y + box_height
    reaches_out = min(x, y) < -_OVERHANG or right > width + _OVERHANG or bottom > height + _OVERHANG
    if reaches_out or x >= width or y >= height or min(right, bottom) <= 0:
        raise AnnotationError(
            f"{where}: bbox {item['bbox']} is outside of its image of {width}x{height} pixels: expected "
            "[x_min, y_min, width, height] inside of it; clip it, or convert corners to a width and height"
        )


def _repeated(
    first: dict[int | str, int], key: int | str, index: int, what: str, place: str, shared: set[int] | None = None
) -> str | None:
    """What is wrong if `key` stood in an earlier record, too. Both positions go into `shared`."""
    earlier = first.setdefault(key, index)
    if earlier == index:
        return None
    if shared is not None:
        shared |= {earlier, index}
    return f"{what} {place}[{earlier}]: expected every one once; remove one of them, or correct it"


def _in_threads(function: Callable[[Any], _T], items: Sequence[Any], progress: Progress) -> Iterator[_T | DetrError]:
    """The results in the order of the items; an error of the project in the place of a result."""

    def result_or_error(item: Any) -> _T | DetrError:
        try:
            return function(item)
        except DetrError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for done, result in enumerate(pool.map(result_or_error, items), start=1):
            if done % _TOLD_EVERY == 0 or done == len(items):
                progress.step(done, len(items), "checking pictures")
            yield result
