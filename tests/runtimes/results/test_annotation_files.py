"""Results as YOLO's text files and LabelMe's documents, read back by this project's reader, by YAML and by pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from detr_export.data.yolo import read_yolo
from detr_export.runtimes import Detections, InputError
from detr_export.runtimes.results.interop.polygons import join, parts_of
from detr_export.runtimes.results.interop.yolo import yolo_names, yolo_yaml
from tests.runtimes.results.test_values import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, with NumPy 2

NAMES = {0: "N/A", 1: "person", 3: "car"}


def area_of(polygon: np.ndarray) -> float:
    """By the shoelace formula, which counts holes only if they are walked the other way round."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def filled(polygon: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """By pycocotools."""
    (encoded,) = coco_mask.frPyObjects([polygon.ravel().tolist()], *shape)
    return coco_mask.decode(encoded).astype(bool)


# ---- polygons -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(150))
def test_polygons_have_exactly_the_pixels_of_their_mask(seed: int) -> None:
    """Specks, diagonals, holes and islands in holes: random pixels have all of them."""
    draws = np.random.default_rng(seed)
    mask = draws.random(draws.integers(1, 16, 2)) < draws.random()
    parts = parts_of(mask)
    together = np.zeros(mask.shape, dtype=int)
    for part in parts:
        pixels = filled(part, mask.shape)
        assert area_of(part) == pixels.sum() > 0
        together += pixels
    assert np.array_equal(together, mask)
    if parts:
        assert area_of(join(parts)) == mask.sum()
        assert np.array_equal(filled(join(parts), mask.shape), mask)


@pytest.mark.parametrize(
    ("rows", "areas"),
    [
        (["###", "###"], [6]),
        (["#..", ".#.", "..#"], [1, 1, 1]),  # pixels that share a corner
        (["..#", ".#.", "#.."], [1, 1, 1]),
        (["####", "#..#", "####"], [10]),
        (["#####", "#...#", "#.#.#", "#...#", "#####"], [16, 1]),  # an island in a hole
        (["#####", "#.#.#", "#####"], [13]),  # two holes
        (["####", "#.##", "##.#", "####"], [14]),  # holes that share a corner
        (["...", "..."], []),
    ],
)
def test_parts(rows: list[str], areas: list[int]) -> None:
    mask = np.array([[pixel == "#" for pixel in row] for row in rows])
    assert [area_of(part) for part in parts_of(mask)] == areas


def test_the_corners_of_a_rectangle() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:5, 1:7] = True
    (part,) = parts_of(mask)
    assert part.tolist() == [[1, 2], [7, 2], [7, 5], [1, 5]]


# ---- YOLO ---------------------------------------------------------------------------------------------------------------


def read_back(texts: dict[str, str], sizes: dict[str, tuple[int, int]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The annotations that this project reads out of text files beside pictures, by the names of the pictures."""
    (folder / "data.yaml").write_text(yolo_yaml(NAMES), encoding="utf-8")
    for name, (height, width) in sizes.items():
        Image.new("L", (width, height)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(texts[name], encoding="utf-8")
    document = read_yolo(folder / "data.yaml", folder, "train")
    names = {image["id"]: image["file_name"].removesuffix(".png") for image in document["images"]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for item in document["annotations"]:
        found[names[item["image_id"]]].append(item)
    return found


def test_boxes_are_the_same_float32_numbers_again(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    found, sizes = {}, {}
    for index in range(8):
        height, width = draws.integers(2, 5000, 2).tolist()
        corners = np.sort(draws.uniform(0.01, 1, (6, 2, 2)) * (width, height), axis=1).astype(np.float32)
        corners[0] = [[0, 0], [width, height]]
        sizes[f"{index:02}"] = (height, width)
        found[f"{index:02}"] = Detections(
            draws.random(6, dtype=np.float32), draws.choice([1, 3], 6), corners.reshape(6, 4), ("x",) * 6, (height, width)
        )
    again = read_back({name: item.to_yolo() for name, item in found.items()}, sizes, tmp_path)
    for name, item in found.items():
        boxes = np.array([entry["bbox"] for entry in again[name]])
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(boxes.astype(np.float32), item.boxes)
        assert [entry["category_id"] for entry in again[name]] == item.labels.tolist()


@pytest.mark.parametrize("name", ["detections", "panoptic", "instances", "semantic"])
def test_masks_have_the_same_area_and_pixels_again(name: str, tmp_path: Path) -> None:
    found = EXAMPLES[name]
    masks = found.masks if isinstance(found, Detections) else [found.mask(segment) for segment in found.segments]
    (again,) = read_back({"a": found.to_yolo()}, {"a": found.image_size}, tmp_path).values()
    labels = found.labels.tolist() if isinstance(found, Detections) else [segment.label for segment in found.segments]
    assert [entry["category_id"] for entry in again] == labels
    for entry, mask in zip(again, masks, strict=True):
        (numbers,) = entry["segmentation"]
        assert entry["area"] == pytest.approx(mask.sum())
        assert np.array_equal(filled(np.array(numbers).reshape(-1, 2).round(9), mask.shape), mask)


def test_a_mask_without_pixels_has_its_box() -> None:
    found = EXAMPLES["detections"]
    masks = np.stack([found.masks[0], np.zeros_like(found.masks[0])])
    changed = Detections(found.scores, found.labels, found.boxes, found.names, found.image_size, masks)
    x_min, y_min, x_max, y_max = (found.boxes[1].reshape(2, 2) / (5, 4)).ravel().tolist()
    numbers = [float(number) for number in changed.to_yolo().splitlines()[1].split()]
    assert numbers == pytest.approx([1, x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max])
    assert changed.to_yolo().splitlines()[0] == found.to_yolo().splitlines()[0]
    assert [shape["shape_type"] for shape in changed.to_labelme("a.jpg")["shapes"]][-1] == "rectangle"


def test_scores_stand_at_the_end_with_the_digits_of_float32() -> None:
    found = EXAMPLES["detections without masks"]
    plain, scored = found.to_yolo().splitlines(), found.to_yolo(confidence=True).splitlines()
    assert scored == [f"{plain[0]} 0.7", f"{plain[1]} 0.1"]
    assert EXAMPLES["panoptic"].to_yolo(confidence=True).splitlines()[1].endswith(" 0.123456")
    assert EXAMPLES["no detections"].to_yolo() == ""
    with pytest.raises(InputError, match="segments of a semantic map have no scores; leave confidence out"):
        EXAMPLES["semantic"].to_yolo(confidence=True)


ODD_NAMES = {0: 'a "b"\\', 1: "猫 é 😀", 2: "two\nlines\t\x85\ufeff", 5: "yes", 4: " # : {", 6: ""}


def test_names_are_read_by_yaml() -> None:
    document = yaml.safe_load(yolo_yaml(ODD_NAMES))
    assert document == {"train": ".", "val": ".", "names": {**ODD_NAMES, 3: "3"}}
    assert [*document["names"]] == [*range(7)]  # without gaps
    assert yolo_names({}) == []


# ---- LabelMe ------------------------------------------------------------------------------------------------------------

SHAPE = {"label", "points", "group_id", "shape_type", "flags", "description", "mask"}  # keys that LabelMe reads


def require_readable(document: dict[str, Any]) -> None:
    """What `read_label_file` of labelme 6.3.1 requires of a document and of its shapes."""
    assert {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} == set(document)
    assert document["imageData"] is None
    for shape in document["shapes"]:
        assert SHAPE <= set(shape) <= {*SHAPE, "score"}
        assert isinstance(shape["label"], str)
        assert shape["points"]
        assert all(len(point) == 2 and all(type(side) is float for side in point) for point in shape["points"])
        assert shape["shape_type"] in ("rectangle", "polygon")
        assert len(shape["points"]) == 2 if shape["shape_type"] == "rectangle" else len(shape["points"]) >= 4
        assert shape["group_id"] is None or type(shape["group_id"]) is int


def test_rectangles_have_the_same_numbers() -> None:
    found = EXAMPLES["detections without masks"]
    document = json.loads(json.dumps(found.to_labelme("photos/a.jpg")))
    require_readable(document)
    assert (document["imageHeight"], document["imageWidth"]) == found.image_size
    assert document["imagePath"] == "photos/a.jpg"
    for shape, item in zip(document["shapes"], found, strict=True):
        assert (shape["label"], shape["score"]) == (item.name, item.score)
        assert np.array_equal(np.array(shape["points"], np.float32).ravel(), item.box)


@pytest.mark.parametrize("name", ["detections", "panoptic", "semantic"])
def test_polygons_of_one_object_have_one_group(name: str) -> None:
    found = EXAMPLES[name]
    masks = found.masks if isinstance(found, Detections) else [found.mask(segment) for segment in found.segments]
    document = json.loads(json.dumps(found.to_labelme("a.jpg")))
    require_readable(document)
    shapes = iter(document["shapes"])
    several = 0
    for number, mask in enumerate(masks):
        pixels = np.zeros(mask.shape, dtype=int)
        parts = len(parts_of(mask))
        for _ in range(parts):
            shape = next(shapes)
            assert shape["group_id"] == (number if parts > 1 else None)
            pixels += filled(np.array(shape["points"]), mask.shape)
        assert np.array_equal(pixels, mask)
        several += parts > 1
    assert next(shapes, None) is None
    assert bool(several) == (name == "detections")
    assert all(("score" in shape) == (name != "semantic") for shape in document["shapes"])


def test_nothing_is_a_document_without_shapes() -> None:
    assert EXAMPLES["nothing segmented"].to_labelme("a.jpg")["shapes"] == []
