"""Data sets as YOLO's tools write them: a data.yaml with folders of pictures, and a text file of boxes for each picture.

A line is `class center_x center_y width height`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon, all relative to the upright
picture. Classes are counted from 0 and have their names in data.yaml. A picture without a text file has no objects.

Source of the format: the documentation of ultralytics, "Object Detection Datasets Overview".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.runtimes.documents import read_content, shown
from detr_export.runtimes.errors import AnnotationError, ImageError, missing_extra
from detr_export.runtimes.limits import current, require_at_most
from detr_export.runtimes.processing.annotations.checks import told
from detr_export.runtimes.processing.image_paths import list_folder
from detr_export.runtimes.processing.images import read_image_size

PLACE = "place"  # key of an annotation: its file and line, for messages

YOLO_LINE = "class center_x center_y width height, or class x1 y1 x2 y2 x3 y3 ..., relative to the picture"

_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_BOX = 4  # numbers of a box
_POLYGON = 6  # numbers of the smallest polygon
_THREADS = 8  # that read headers
_NAME_BYTES = 64  # of data.yaml for each class that there may be: reading YAML takes long
_LINE_BYTES = 16 << 20  # of the text file of one picture
_LONGEST_PATH = 300  # characters of a path in a message
_FARTHEST = 1e6  # times the size of the picture
_CLASS = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class _Object:
    """A line of a text file, in pixels."""

    label: int
    bbox: list[float]  # x_min, y_min, width, height
    polygon: list[float] | None


def names_split(file: Path, split: str) -> bool:
    """Whether a data.yaml has its own pictures for a split: not those of `train`."""
    document = _read(file)
    value = _value(document, split)
    return value is not None and (split == "train" or value != _value(document, "train"))


def read_yolo(file: Path, root: Path, split: str) -> Mapping[str, Any]:
    """A split as a COCO document; the names of the pictures begin at `root`.

    A line that cannot be read becomes an annotation whose `bbox` is the line, for a check to find. Each annotation has its
    file and line under `PLACE`.

    Raises:
        AnnotationError: data.yaml cannot be read, names no classes, or its pictures are not there.
    """
    document = _read(file)
    value = _value(document, split)
    if value is None:
        raise AnnotationError(f"{file} has no {split}; expected a folder, a list of folders, or a text file with paths")
    bases = _bases(file, document)
    pictures = sorted({path for place in _paths(file, split, value) for path in _pictures(file, bases, place)})
    if not pictures:
        raise AnnotationError(f"{file}: the {split} folder {value} holds no pictures")

    # A COCO record for each picture and each line.
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, size in zip(pictures, pool.map(_size, pictures), strict=True):
            name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": name, **size})
            if not size:  # a damaged picture; a check says so
                continue
            for place, line in _lines(_text_file(path), root):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, PLACE: place})
                annotations[-1] |= _fields(line, size["width"], size["height"])
    if any("segmentation" not in item for item in annotations):  # an evaluator wants all of them, or none
        for item in annotations:
            item.pop("segmentation", None)
    categories = [{"id": label, "name": name} for label, name in _classes(document, file).items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read(file: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError:
        raise missing_extra("PyYAML", "train") from None

    class Loader(yaml.SafeLoader):
        """Plain values alone. With aliases a few lines can stand for more than memory holds."""

        def fetch_alias(self) -> None:
            raise yaml.YAMLError("it has an alias (*name); write the value itself")

    content = _bytes(file, "a file in YAML")
    most = _NAME_BYTES * current().labels
    if len(content) > most:
        raise AnnotationError(f"{file} has {len(content)} bytes; expected at most {most}; see --limit labels=N")
    try:
        document = yaml.load(content.decode("utf-8"), Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise AnnotationError(f"{file} is not YAML: {' '.join(str(error).split()):.200}") from error
    if not isinstance(document, Mapping):
        raise AnnotationError(f"{file} is a {type(document).__name__}; expected keys such as train, val and names")
    return document


def _bytes(file: Path, what: str) -> bytes:
    try:
        return read_content(file, AnnotationError, "document_bytes", what)
    except FileNotFoundError as error:
        raise AnnotationError(f"{file} cannot be read: {error.strerror}") from error


def _classes(document: Mapping[str, Any], file: Path) -> dict[int, str]:
    names = document.get("names")
    pairs = list(names.items()) if isinstance(names, Mapping) else list(enumerate(names if isinstance(names, list) else []))
    if not pairs or any(type(label) is not int or label < 0 or not isinstance(name, (str, int)) for label, name in pairs):
        raise AnnotationError(f"{file}: names is {told(names)}; expected the names of the classes, as a list or by number")
    require_at_most("labels", len(pairs), f"{file}: the number of names", AnnotationError)
    return {label: name if isinstance(name, str) else shown(name) for label, name in sorted(pairs)}


def _value(document: Mapping[str, Any], split: str) -> Any:
    return next((document[key] for key in _KEYS.get(split, (split,)) if document.get(key)), None)


def _paths(file: Path, key: str, value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in found):
        raise AnnotationError(f"{file}: {key} is {told(value)}; expected a path, or a list of paths")
    return found


def _bases(file: Path, document: Mapping[str, Any]) -> list[Path]:
    """Where paths begin: at `path`, and at the folder of data.yaml."""
    given = _paths(file, "path", document["path"]) if document.get("path") else []
    return [*(file.parent / path for path in given), file.parent]


def _pictures(file: Path, bases: list[Path], value: str) -> Iterator[Path]:
    """The pictures of a folder and the folders in it, or those that a text file lists.

    Roboflow writes `../train/images` for what lies beside data.yaml.
    """
    places = [base / name for base in bases for name in dict.fromkeys((value, value.removeprefix("../")))]
    place = next((place for place in places if os.path.exists(place)), None)  # a name may be too long
    if place is None:
        name = str(places[0])
        name = name if len(name) <= _LONGEST_PATH else f"{name[:_LONGEST_PATH]}..."
        raise AnnotationError(f"{name} does not exist; {file} names it, so correct it or path there")
    if place.is_dir():
        yield from list_folder(place).pictures
        return
    try:
        listed = _bytes(place, "a text file with a path on each line").decode("utf-8").split("\n")
    except ValueError as error:
        raise AnnotationError(f"{place} cannot be read: {error}; expected a path on each line") from error
    if any("\0" in name for name in listed):
        raise AnnotationError(f"{place} has a null byte; expected a path on each line")
    for name in filter(None, map(str.strip, listed)):
        yield next((base / name for base in (place.parent, *bases) if os.path.exists(base / name)), place.parent / name)


def _text_file(picture: Path) -> Path:
    """In `labels/` in the place of the last `images/` of the path, or beside the picture."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _size(picture: Path) -> dict[str, int]:
    try:
        height, width = read_image_size(picture)
    except ImageError:
        return {}
    return {"width": width, "height": height}


def _lines(file: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Each line that has something on it, and where it stands."""
    name = file.relative_to(root) if file.is_relative_to(root) else file
    if not os.path.exists(file):
        return
    try:
        content = _bytes(file, "a text file of objects")
        if len(content) > _LINE_BYTES:
            raise ValueError(f"it has {len(content)} bytes; expected at most {_LINE_BYTES}")
        text = content.decode("utf-8")
    except (AnnotationError, ValueError) as error:
        yield str(name), f"unreadable: {str(error).replace(str(file), 'it')}"
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}, line {number}", line.strip()


def _fields(line: str, width: int, height: int) -> dict[str, Any]:
    """What a line says, as the fields of a COCO annotation."""
    found = _object(line, width, height)
    if found is None:
        return {"category_id": None, "bbox": line}
    fields: dict[str, Any] = {"category_id": found.label, "bbox": found.bbox, "area": found.bbox[2] * found.bbox[3]}
    if found.polygon is not None:
        xs, ys = found.polygon[::2], found.polygon[1::2]
        turned = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
        fields |= {"area": abs(sum(x * v - u * y for x, y, u, v in turned)) / 2, "segmentation": [found.polygon]}
    return fields


def _object(line: str, width: int, height: int) -> _Object | None:
    label, *rest = line.split()
    if not _CLASS.fullmatch(label) or not all(map(_NUMBER.fullmatch, rest)) or len(rest) > 2 * current().points:
        return None
    try:
        numbers = [float(number) for number in rest]
        index = int(label)
    except ValueError:
        return None
    if not all(math.isfinite(number) and abs(number) <= _FARTHEST for number in numbers):
        return None
    if len(numbers) == _BOX:
        x, y, w, h = numbers
        return _Object(index, [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], None)
    if len(numbers) < _POLYGON or len(numbers) % 2:
        return None
    points = [number * (height if index % 2 else width) for index, number in enumerate(numbers)]
    left, top = min(points[::2]), min(points[1::2])
    return _Object(index, [left, top, max(points[::2]) - left, max(points[1::2]) - top], points)
