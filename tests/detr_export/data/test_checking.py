"""What is wrong with a data set is found in one pass: named by record and field, and left out if that is wished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_export.data.splits import read_split
from detr_export.runtimes.errors import AnnotationError, DatasetError
from detr_export.training.demo_data import write_demo_data
from tests.detr_export.recorder import Recorder

Document = dict[str, Any]
Change = Callable[[Document, Path], object]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with four images; not to be changed."""
    return write_demo_data(tmp_path_factory.mktemp("drawn"), 4, "train")


def changed(drawn: Path, tmp_path: Path, change: Change, kind: str = "instances") -> Path:
    """A copy of the folder in which a function has changed the document or the files."""
    root = tmp_path / "data"
    shutil.copytree(drawn, root)
    file = root / "annotations" / f"{kind}_train.json"
    document = json.loads(file.read_text())
    change(document, root)
    file.write_text(json.dumps(document))
    return root


def put(place: str, index: int, **values: Any) -> Change:
    """A change of one record."""
    return lambda document, root: document[place][index].update(values)


def turn(document: Document, root: Path) -> None:
    """Saves the first picture with an EXIF orientation that exchanges its sides."""
    file = root / "train" / document["images"][0]["file_name"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(file).save(file, exif=exif)


def cut(document: Document, root: Path) -> None:
    file = root / "train" / document["images"][0]["file_name"]
    file.write_bytes(b"no picture")


INSTANCES: list[tuple[Change, str, tuple[int, int]]] = [
    # images: the change, the line, and how many images and annotations are bad (None: all of the first image)
    (put("images", 0, file_name="gone.jpg"), r"image 1: file_name: .*train/gone\.jpg does not exist", (1, -1)),
    (cut, r"image 1: file_name: .*000001\.jpg is not an image that Pillow reads", (1, -1)),
    (
        turn,
        r"image 1: width and height are (\d+)x(\d+): expected \2x\1, which .*000001\.jpg has when it is upright",
        (1, -1),
    ),
    (put("images", 0, width=7), r"image 1: width and height are 7x\d+: expected \d+x\d+", (1, -1)),
    (put("images", 0, width=1.5), r"image 1: width is 1\.5: expected an integer", (1, -1)),
    (put("images", 0, height="3"), r"image 1: height is '3': expected an integer", (1, -1)),
    (put("images", 0, height=True), r"image 1: height is True: expected an integer", (1, -1)),
    (put("images", 0, height=0), r"image 1: height is 0: expected at least 1 pixel", (1, -1)),
    (put("images", 0, file_name=5), r"image 1: file_name is 5: expected the name of a picture", (1, -1)),
    (lambda d, r: d["images"][0].pop("file_name"), r"image 1: no file_name; expected that key", (1, -1)),
    (lambda d, r: d["images"].append(3), r"images\[4\] is a int: expected a dict", (1, 0)),
    (lambda d, r: d["images"].append({"id": "9"}), r"images\[4\]: id is '9': expected an integer", (1, 0)),
    # Neither of two images with one id or one file is good.
    (
        lambda d, r: d["images"].append({**d["images"][1], "id": 1}),
        r"image 1: file_name 000002\.jpg is that of images\[1\]: expected every one once",
        (3, -2),
    ),
    (
        lambda d, r: d["images"].append({"id": 1, "file_name": "000004.png"}),
        r"image 1: id is that of images\[0\]: expected every one once",
        (2, -1),
    ),
    (
        lambda d, r: d["images"].append({**d["images"][0], "id": 9}),
        r"image 9: file_name 000001\.jpg is that of images\[0\]: expected every one once",
        (2, -1),
    ),
    # annotations
    (
        put("annotations", 0, category_id=99),
        r"annotation 1: category_id is 99: expected the id of a category \(1, 2, ",
        (0, 1),
    ),
    (put("annotations", 0, category_id="1"), r"annotation 1: category_id is '1': expected an integer", (0, 1)),
    (put("annotations", 0, category_id=True), r"annotation 1: category_id is True: expected an integer", (0, 1)),
    (put("annotations", 0, image_id=77), r"annotation 1: image_id is 77: expected the id of an image", (0, 1)),
    (put("annotations", 0, image_id=1.0), r"annotation 1: image_id is 1\.0: expected an integer", (0, 1)),
    (put("annotations", 1, id=1), r"annotation 1: id is that of annotations\[0\]: expected every one once", (0, 1)),
    (put("annotations", 0, id=1.5), r"annotations\[0\]: id is 1\.5: expected an integer", (0, 1)),
    (put("annotations", 0, iscrowd="0"), r"annotation 1: iscrowd is '0': expected 0 or 1", (0, 1)),
    (lambda d, r: d["annotations"].append([]), r"annotations\[\d+\] is a list: expected a dict", (0, 1)),
    (lambda d, r: d["annotations"][0].pop("bbox"), r"annotation 1: no bbox; expected that key", (0, 1)),
    *(
        (put("annotations", 0, bbox=box), rf"annotation 1: bbox {message}", (0, 1))
        for box, message in (
            ("1, 2, 3, 4", "is '1, 2, 3, 4': expected four finite numbers"),
            ([1, 2, 3], r"is \[1, 2, 3\]: expected four finite numbers"),
            ([1, 2, "3", 4], r"is \[1, 2, '3', 4\]: expected four finite numbers"),
            ([1, 2, True, 4], r"is \[1, 2, True, 4\]: expected four finite numbers"),
            ([1, 2, 1e39, 4], r"is \[1, 2, 1e\+39, 4\]: expected four finite numbers"),
            ([-1e39, 2, 3, 4], r"is \[-1e\+39, 2, 3, 4\]: expected four finite numbers"),
            ([1, 2, 0, 4], r"\[1, 2, 0, 4\] has no area"),
            ([1, 2, 3, -4], r"\[1, 2, 3, -4\] has no area"),
            ([-2, 2, 9, 4], r"\[-2, 2, 9, 4\] is outside of its image of \d+x\d+ pixels"),
            ([1, 2, 3, 4000], r"\[1, 2, 3, 4000\] is outside of its image"),
            ([-0.9, 2, 0.8, 4], r"\[-0.9, 2, 0.8, 4\] is outside of its image"),
        )
    ),
]


@pytest.mark.parametrize(("change", "message", "bad"), INSTANCES)
def test_detection(change: Change, message: str, bad: tuple[int, int], drawn: Path, tmp_path: Path) -> None:
    good = read_split(drawn, "train", "detection")
    root = changed(drawn, tmp_path, change)
    file = root / "annotations" / "instances_train.json"
    with pytest.raises(DatasetError, match=message) as caught:
        read_split(root, "train", "detection")
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(f"{file} has 1 problem; correct them")
    assert "--skip-bad (skip_bad=True)" in head
    assert len(lines) == 1

    # Without what is bad: a negative number stands for the annotations of that many images.
    split = read_split(root, "train", "detection", skip_bad=True)
    images, annotations = bad
    if annotations < 0:
        annotations = sum(len(record["annotations"]) for record in good.records[:-annotations])
    assert (split.bad_images, split.bad_annotations) == (images, annotations)
    total = len(json.loads(file.read_text())["images"])
    assert len(split) == total - images
    assert all(record["image"].is_file() for record in split.records)
    count = sum(len(record["annotations"]) for record in split.records)
    assert count == len(json.loads(file.read_text())["annotations"]) - annotations


def segment(index: int = 0, **values: Any) -> Change:
    return lambda document, root: document["annotations"][0]["segments_info"][index].update(values)


def png(change: Callable[[Path], object]) -> Change:
    return lambda document, root: change(root / "annotations" / "panoptic_train" / document["annotations"][0]["file_name"])


PANOPTIC: list[tuple[Change, str, tuple[int, int]]] = [
    (png(Path.unlink), r"image 1: file_name: .*panoptic_train/000001\.png does not exist", (1, -1)),
    (png(lambda file: file.write_bytes(b"no")), r"image 1: file_name: cannot read .*000001\.png", (1, -1)),
    (png(lambda file: Image.open(file).convert("L").save(file)), r"image 1: file_name: .* has mode L", (1, -1)),
    (png(lambda file: Image.new("RGB", (3, 2)).save(file)), r"image 1: file_name: .* is 3x2 pixels: expected the", (1, -1)),
    (put("annotations", 0, file_name=None), r"image 1: file_name is None: expected the name of the panoptic PNG", (1, -1)),
    (put("annotations", 0, segments_info={}), r"image 1: segments_info is a dict: expected a list", (1, 0)),
    (put("annotations", 0, image_id=77), r"annotations\[0\]: image_id is 77: expected the id of an image", (0, -1)),
    (cut, r"image 1: file_name: .*000001\.jpg is not an image", (1, -1)),
    (segment(category_id=99), r"image 1, segment \d+: category_id is 99: expected the id of a category", (0, 1)),
    (segment(bbox=[1, 2, 3000, 4]), r"image 1, segment \d+: bbox \[1, 2, 3000, 4\] is outside of its image", (0, 1)),
    (segment(id="7"), r"image 1, segments_info\[0\]: id is '7': expected an integer", (1, -1)),
    (segment(area=1e39), r"image 1, segment \d+: area is 1e\+39: expected a finite number", (0, 1)),
    (segment(iscrowd=2), r"image 1, segment \d+: iscrowd is 2: expected 0 or 1", (0, 1)),
    (
        lambda d, r: d["annotations"][0]["segments_info"][0].update(id=d["annotations"][0]["segments_info"][1]["id"]),
        r"image 1: segments_info\[0\] and segments_info\[1\] both have id",
        (1, -1),
    ),
]


@pytest.mark.parametrize(("change", "message", "bad"), PANOPTIC)
def test_panoptic(change: Change, message: str, bad: tuple[int, int], drawn: Path, tmp_path: Path) -> None:
    good = read_split(drawn, "train", "panoptic")
    root = changed(drawn, tmp_path, change, "panoptic")
    with pytest.raises(DatasetError, match=message) as caught:
        read_split(root, "train", "panoptic")
    assert len(str(caught.value).splitlines()) == 2
    split = read_split(root, "train", "panoptic", skip_bad=True)
    images, annotations = bad
    annotations = len(good.records[0]["segments_info"]) if annotations < 0 else annotations
    assert (split.bad_images, split.bad_annotations) == (images, annotations)
    whole = {record["image_id"]: len(record["segments_info"]) for record in good.records}
    left = {record["image_id"]: len(record["segments_info"]) for record in split.records}
    if len(left) == len(whole):
        assert whole.pop(1) - left.pop(1) == annotations
    assert left == {image_id: count for image_id, count in whole.items() if image_id != 1}


def test_a_second_record_of_an_image(drawn: Path, tmp_path: Path) -> None:
    root = changed(drawn, tmp_path, lambda d, r: d["annotations"].append(d["annotations"][2]), "panoptic")
    with pytest.raises(DatasetError, match=r"image 3: its record is a second one beside annotations\[2\]"):
        read_split(root, "train", "panoptic")
    split = read_split(root, "train", "panoptic", skip_bad=True)
    assert [record["image_id"] for record in split.records] == [1, 2, 4]
    assert split.bad_images == 1


def test_two_records_with_one_png(drawn: Path, tmp_path: Path) -> None:
    root = changed(drawn, tmp_path, put("annotations", 2, file_name="000001.png"), "panoptic")
    with pytest.raises(DatasetError, match=r"image 3: file_name 000001\.png is that of annotations\[0\]"):
        read_split(root, "train", "panoptic")
    split = read_split(root, "train", "panoptic", skip_bad=True)
    assert [record["image_id"] for record in split.records] == [2, 4]
    whole = read_split(drawn, "train", "panoptic").records
    assert split.bad_annotations == sum(len(whole[index]["segments_info"]) for index in (0, 2))


@pytest.mark.parametrize("box", [[-0.5, -1, 20, 20], [1, 2, 3.25, 4]])
def test_a_rounded_box_is_good(box: list[float], drawn: Path, tmp_path: Path) -> None:
    split = read_split(changed(drawn, tmp_path, put("annotations", 0, bbox=box)), "train", "detection")
    assert split.records[0]["annotations"][0]["bbox"] == box
    assert (split.bad_images, split.bad_annotations) == (0, 0)


def test_a_box_may_overhang_by_a_pixel_and_no_more(drawn: Path, tmp_path: Path) -> None:
    image = json.loads((drawn / "annotations" / "instances_train.json").read_text())["images"][0]
    width, height = image["width"], image["height"]
    root = changed(drawn, tmp_path, put("annotations", 0, bbox=[10, 10, width - 9, height - 9]))
    read_split(root, "train", "detection")
    for beyond in ([10, 10, width - 8.9, 5], [10, 10, 5, height - 8.9], [width, 10, 0.5, 5], [10, height, 5, 0.5]):
        shutil.rmtree(root)
        changed(drawn, tmp_path, put("annotations", 0, bbox=beyond))
        with pytest.raises(DatasetError, match="is outside of its image"):
            read_split(root, "train", "detection")


def test_what_no_one_trains_on_is_not_asked_for(drawn: Path, tmp_path: Path) -> None:
    """Crowds are left out whatever they hold, and so are sizes and ids that are not there."""

    def change(document: Document, root: Path) -> None:
        document["annotations"].append({"image_id": 1, "iscrowd": 1, "bbox": "nothing"})
        for item in document["images"]:
            del item["width"], item["height"]
        for item in document["annotations"]:
            item.pop("id", None)

    split = read_split(changed(drawn, tmp_path, change), "train", "detection")
    assert [len(record["annotations"]) for record in split.records] == [
        len(record["annotations"]) for record in read_split(drawn, "train", "detection").records
    ]


def test_the_first_ten_are_listed_and_all_are_counted(drawn: Path, tmp_path: Path) -> None:
    def change(document: Document, root: Path) -> None:
        for number in range(30):
            document["annotations"].append({"id": 1000 + number, "image_id": 1, "category_id": 99, "bbox": [1, 1, 2, 2]})
        document["images"][3]["file_name"] = "gone\n.jpg"

    with pytest.raises(DatasetError) as caught:
        read_split(changed(drawn, tmp_path, change), "train", "detection")
    head, *lines = str(caught.value).splitlines()
    assert "has 31 problems, here the first 10; correct them" in head
    assert len(lines) == 10
    assert lines[0].startswith("  image 4: file_name")
    assert [line.split(":")[0] for line in lines[1:]] == [f"  annotation {1000 + number}" for number in range(9)]


def test_nothing_is_left(drawn: Path, tmp_path: Path) -> None:
    def change(document: Document, root: Path) -> None:
        for item in document["annotations"]:
            item["category_id"] = 99

    root = changed(drawn, tmp_path, change)
    with pytest.raises(DatasetError, match=r"has \d+ problems.*; nothing to train on is left:\n  annotation 1: category_id"):
        read_split(root, "train", "detection", skip_bad=True)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_no_annotations_at_all(skip_bad: bool, drawn: Path, tmp_path: Path) -> None:
    root = changed(drawn, tmp_path, lambda d, r: d["annotations"].clear())
    with pytest.raises(AnnotationError, match=r"instances_train\.json has no annotations to train on"):
        read_split(root, "train", "detection", skip_bad)


def test_progress(drawn: Path) -> None:
    progress = Recorder()
    read_split(drawn, "train", "detection", progress=progress)
    assert progress.lines == ["checking 4 pictures"]
    assert progress.steps == [(4, 4, "checking pictures")]
    read_split(drawn, "train", "panoptic", progress=progress)
    assert progress.lines[1:] == ["checking 4 pictures", "checking 4 PNGs"]
