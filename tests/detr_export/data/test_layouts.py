"""Data sets as labelling tools write them: the same boxes on the same pictures, whatever the layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.benchmarks.accuracy.scores import find_annotated
from detr_export.data.layouts import find_split, is_data_set
from detr_export.data.splits import CocoSplit, read_split
from detr_export.graphs.int8.pictures import find_pictures
from detr_export.runtimes.errors import AnnotationError, DatasetError

WIDTH, HEIGHT = 40, 30
NAMES = ["penny", "crown"]
# Of each picture: class, counted from 0, and x_min, y_min, width, height in pixels.
OBJECTS: dict[str, list[tuple[int, tuple[float, float, float, float]]]] = {
    f"{number:02}.png": [(number % 2, (number, 2, 10, 8)), (1, (5, 10, 4, 12))][: 0 if number == 3 else 1 + number % 2]
    for number in range(20)
}
TRAIN, VAL = list(OBJECTS)[:14], list(OBJECTS)[14:]


def draw(folder: Path, names: list[str], below: str = "") -> None:
    (folder / below).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (int(name[:2]), 0, 0)).save(folder / below / name)


def coco(names: list[str], first: int = 1, prefix: str = "") -> dict[str, Any]:
    objects = [(image_id, *item) for image_id, name in enumerate(names) for item in OBJECTS[name]]
    return {
        "images": [
            {"id": image_id, "file_name": prefix + name, "width": WIDTH, "height": HEIGHT}
            for image_id, name in enumerate(names)
        ],
        "annotations": [
            {"id": id_, "image_id": image_id, "category_id": label + first, "bbox": list(box), "area": box[2] * box[3]}
            | {"iscrowd": 0, "segmentation": []}
            for id_, (image_id, label, box) in enumerate(objects)
        ],
        "categories": [{"id": label + first, "name": name, "supercategory": "coins"} for label, name in enumerate(NAMES)],
    }


def write(file: Path, document: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document))


def roboflow(root: Path) -> None:
    for folder, names in (("train", TRAIN), ("valid", VAL)):
        draw(root / folder, names)
        document = coco(names)
        document["categories"].insert(0, {"id": 0, "name": "coins", "supercategory": "none"})
        write(root / folder / "_annotations.coco.json", document)


def roboflow_without_splits(root: Path) -> None:
    draw(root / "train", list(OBJECTS))
    write(root / "train" / "_annotations.coco.json", coco(list(OBJECTS)))


def cvat(root: Path) -> None:
    for subset, names in (("Train", TRAIN), ("Validation", VAL)):
        draw(root / "images" / subset, names)
        write(root / "annotations" / f"instances_{subset}.json", coco(names))


def cvat_without_subsets(root: Path) -> None:
    draw(root / "images", list(OBJECTS), "default/camera 1")
    write(root / "annotations" / "instances_default.json", coco(list(OBJECTS)))


def label_studio(root: Path) -> None:
    draw(root / "images", list(OBJECTS))
    write(root / "result.json", coco(list(OBJECTS), 0, "images\\"))


def yolo_lines(name: str) -> str:
    lines = []
    for label, (x, y, w, h) in OBJECTS[name]:
        lines.append(f"{label} {(x + w / 2) / WIDTH:.9f} {(y + h / 2) / HEIGHT:.9f} {w / WIDTH:.9f} {h / HEIGHT:.9f}")
    return "\n".join(lines) + "\n"


def yolo(root: Path) -> None:
    for split, names in (("train", TRAIN), ("val", VAL)):
        draw(root / "images" / split, names)
        for name in names:
            if OBJECTS[name]:
                write(root / "labels" / split / Path(name).with_suffix(".txt").name, yolo_lines(name))
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: penny\n  1: crown\n")


def yolo_of_roboflow(root: Path) -> None:
    for split, names in (("train", TRAIN), ("valid", VAL)):
        draw(root / split / "images", names)
        for name in names:
            write(root / split / "labels" / Path(name).with_suffix(".txt").name, yolo_lines(name))
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['penny', 'crown']\n")


def yolo_with_lists(root: Path) -> None:
    yolo(root)
    for split, names in (("train", TRAIN), ("val", VAL)):
        write(root / f"{split}.txt", "".join(f"./images/{split}/{name}\n" for name in names))
    write(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [penny, crown]\n")


def yolo_without_val(root: Path) -> None:
    draw(root / "images", list(OBJECTS))
    for name in OBJECTS:
        write(root / "labels" / Path(name).with_suffix(".txt").name, yolo_lines(name))
    write(root / "data.yaml", "train: images\nval: images\nnames: [penny, crown]\n")


WITH_SPLITS = (roboflow, cvat, yolo, yolo_of_roboflow, yolo_with_lists)
WITHOUT_SPLITS = (roboflow_without_splits, cvat_without_subsets, label_studio, yolo_without_val)
Layout = Callable[[Path], None]


def found(split: CocoSplit) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """The objects of each picture; the picture is the one of that name."""
    objects = {}
    for record in split.records:
        with Image.open(record["image"]) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (int(record["image"].name[:2]), 0, 0)
        items = record["annotations"]
        objects[record["image"].name] = [
            (split.id2label[item["category_id"]], tuple(np.round(item["bbox"], 4).tolist())) for item in items
        ]
    return objects


def expected(names: list[str]) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    return {name: [(NAMES[label], tuple(map(float, box))) for label, box in OBJECTS[name]] for name in names}


@pytest.mark.parametrize("layout", WITH_SPLITS)
def test_layouts_with_splits(layout: Layout, tmp_path: Path) -> None:
    layout(tmp_path)
    assert is_data_set(tmp_path)
    assert found(read_split(tmp_path, "train", "detection")) == expected(TRAIN)
    assert found(read_split(tmp_path, "val", "detection")) == expected(VAL)
    # What an evaluator and a calibration read is the same.
    assert sorted(CocoEvaluator(find_annotated(tmp_path).instances, ("bbox",)).categories.values())[-2:] == sorted(NAMES)
    assert [path.name for path in find_annotated(tmp_path).pictures()] == VAL
    assert {path.name for path in find_pictures(tmp_path)} == set(TRAIN)


@pytest.mark.parametrize("layout", WITHOUT_SPLITS)
def test_layouts_without_splits_hold_a_tenth_out(layout: Layout, tmp_path: Path) -> None:
    layout(tmp_path)
    train, val = (found(read_split(tmp_path, split, "detection")) for split in ("train", "val"))
    assert len(val) == 2
    assert train | val == expected(list(OBJECTS))
    assert not set(train) & set(val)
    assert {path.name for path in find_annotated(tmp_path).pictures()} == set(val)
    assert {path.name for path in find_pictures(tmp_path)} == set(train)


def test_the_tenth_is_the_same_in_all_layouts(tmp_path: Path) -> None:
    held_out = []
    for layout in WITHOUT_SPLITS:
        root = tmp_path / layout.__name__
        layout(root)
        held_out.append(set(found(read_split(root, "val", "detection"))))
    assert held_out.count(held_out[0]) == len(WITHOUT_SPLITS)


def test_a_picture_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    cvat_without_subsets(tmp_path)
    before = set(found(read_split(tmp_path, "val", "detection")))
    draw(tmp_path / "images" / "default", ["99.png"])
    document = coco(list(OBJECTS))
    document["images"].append({"id": 99, "file_name": "99.png"})
    write(tmp_path / "annotations" / "instances_default.json", document)
    after = set(found(read_split(tmp_path, "val", "detection")))
    assert len(after) == 3
    assert len(before & after) >= 1


def test_polygons_of_yolo(tmp_path: Path) -> None:
    draw(tmp_path / "images", ["00.png", "01.png"])
    for name in ("00", "01"):
        write(tmp_path / "labels" / f"{name}.txt", "0 0.1 0.2 0.5 0.2 0.5 0.8\n")
    write(tmp_path / "data.yaml", "train: images\nval: images\nnames: [penny]\n")
    document = find_split(tmp_path, "train", "detection").document()
    (item,) = document["annotations"]
    assert item["segmentation"] == [pytest.approx([4, 6, 20, 6, 20, 24])]
    assert (item["bbox"], item["area"]) == (pytest.approx([4, 6, 16, 18]), pytest.approx(16 * 18 / 2))
    assert "segm" in CocoEvaluator(document).iou_types


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", r"00\.txt, line 2: '0 0\.5 0\.5 0\.2' is no line of a YOLO file: expected class center_x"),
        ("penny 0.5 0.5 0.2 0.2", r"line 2: 'penny 0\.5 0\.5 0\.2 0\.2' is no line of a YOLO file"),
        ("7 0.5 0.5 0.2 0.2", r"line 2: category_id is 7: expected the id of a category \(0, 1\)"),
        ("0 0.5 0.5 0.2 nan", r"line 2: '0 0\.5 0\.5 0\.2 nan' is no line of a YOLO file"),
        ("0 3 3 0.1 0.1", "line 2: bbox .* is outside of its image of 40x30 pixels"),
    ],
)
def test_bad_lines_of_yolo(line: str, message: str, tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "00.txt", f"1 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, "train", "detection")
    split = read_split(tmp_path, "train", "detection", skip_bad=True)
    assert (split.bad_annotations, len(split.records[0]["annotations"])) == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nval: images/val\n", "names is None; expected the names of the classes"),
        ("names: [penny]\n", "has no train; expected a folder"),
        ("train: nowhere\nnames: [penny]\n", "nowhere does not exist; .* names it"),
        ("- 1\n", "data.yaml is a list; expected keys such as train"),
        ("a: [\n", "data.yaml is not YAML"),
        ("train: labels\nnames: [penny]\n", "the train folder labels holds no pictures"),
    ],
)
def test_bad_descriptions_of_yolo(text: str, message: str, tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "data.yaml", text)
    with pytest.raises(AnnotationError, match=message):
        read_split(tmp_path, "train", "detection")


def test_a_damaged_picture_of_yolo_is_named(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "images" / "train" / "03.png").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"03\.png"):
        read_split(tmp_path, "train", "detection")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"is no data set that is known: .* \(Label Studio\) or data\.yaml"):
        find_split(tmp_path, "train", "detection")
    assert not is_data_set(tmp_path)
    roboflow(tmp_path)
    with pytest.raises(AnnotationError, match="is a data set of Roboflow, which has no panoptic maps"):
        find_split(tmp_path, "train", "panoptic")
    with pytest.raises(AnnotationError, match=r"has train/_annotations\.coco\.json, valid/.*; expected test/_annotations"):
        find_split(tmp_path, "test", "detection")
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(AnnotationError, match=r"expected train/_annotations"):
        find_split(tmp_path, "train", "detection")
    shutil.rmtree(tmp_path / "valid")
    draw(tmp_path / "images", ["00.png"])
    write(tmp_path / "result.json", coco(["00.png"]))
    with pytest.raises(AnnotationError, match="has 1 images and no splits; expected at least two"):
        find_split(tmp_path, "train", "detection").document()


def test_two_pictures_of_one_name_in_sub_folders_are_not_guessed(tmp_path: Path) -> None:
    cvat_without_subsets(tmp_path)
    draw(tmp_path / "images" / "default" / "other", ["00.png", "01.png"])
    names = {path.name for path in find_split(tmp_path, "train", "detection").pictures() if not path.is_file()}
    names |= {path.name for path in find_split(tmp_path, "val", "detection").pictures() if not path.is_file()}
    assert names == {"00.png", "01.png"}
