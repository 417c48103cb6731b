"""Data sets whose files lie: each is one error with file and field, before memory is taken and without waiting."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_export.data.documents import read_document
from detr_export.data.layouts import find_split
from detr_export.data.splits import read_split
from detr_export.runtimes import limits
from detr_export.runtimes.errors import AnnotationError, DatasetError

WIDTH, HEIGHT = 20, 10


def yolo(root: Path, yaml: str = "train: images\nnames: [cat]\n", label: bytes = b"0 .5 .5 .2 .2\n") -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / f"{name}.png")
        (root / "labels" / f"{name}.txt").write_bytes(b"0 .5 .5 .2 .2\n")
    for name in ("a", "b"):
        (root / "labels" / f"{name}.txt").write_bytes(label)
    (root / "data.yaml").write_text(yaml)
    return root


def test_the_good_data_set(tmp_path: Path) -> None:
    assert len(read_split(yolo(tmp_path), "train", "detection")) == 1


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML: list[tuple[str, str]] = [
    ("", "is a NoneType; expected keys such as train, val and names"),
    ("- a\n- b\n", "is a list; expected keys"),
    ("hello", "is a str; expected keys"),
    ("3", "is a int; expected keys"),
    ("a: [", "is not YAML"),
    ("\ta: 1", "is not YAML"),
    ("a: b: c", "is not YAML"),
    ("a: \x07", "is not YAML"),
    ("[" * 3000, "is not YAML"),
    ("train: !!python/object/apply:os.system ['true']\n", "is not YAML: could not determine a constructor"),
    ("train: !!python/name:os.system\n", "is not YAML: could not determine a constructor"),
    ("train: !mine x\n", "is not YAML: could not determine a constructor"),
    ("{a: 1}: 2\n", "is not YAML"),
    ("train: 2001-99-99\n", "is not YAML"),
    (f"train: {'9' * 6000}\n", "is not YAML"),
    (BOMB, "is not YAML: it has an alias"),
    ("a: &a [*a]\n", "is not YAML: it has an alias"),
    ("a: &a {<<: *a}\n", "is not YAML: it has an alias"),
    ("names: [cat]\n", "has no train"),
    ("train: images\n", "names is None; expected the names of the classes"),
    ("train: images\nnames: cat\n", "names is 'cat'; expected"),
    ("train: images\nnames: []\n", r"names is \[\]; expected"),
    ("train: images\nnames: {a: cat}\n", "names is an object of 1; expected"),
    ("train: images\nnames: {-1: cat}\n", "names is an object of 1; expected"),
    ("train: images\nnames: {1.5: cat}\n", "names is an object of 1; expected"),
    ("train: images\nnames: {true: cat}\n", "names is an object of 1; expected"),
    ("train: images\nnames: [[cat]]\n", "names is a list of 1; expected"),
    ("train: images\nnames: [null]\n", r"names is \[None\]; expected"),
    ("train: images\nnames: {99999999999999999999: cat}\n", "category ids go from|category_id|integer"),
    ("train: images\nnames: {70000: cat}\n", "category ids go from 70000 to 70000; expected 0 to 65535"),
    ("train: gone\nnames: [cat]\n", "gone does not exist"),
    ("train: [images, gone]\nnames: [cat]\n", "gone does not exist"),
    ("train: {a: b}\nnames: [cat]\n", "train is an object of 1; expected a path, or a list of paths"),
    ("train: 5\nnames: [cat]\n", "train is 5; expected a path, or a list of paths"),
    ("train: [images, 5]\nnames: [cat]\n", "train is .*; expected a path, or a list of paths"),
    ("path: 5\ntrain: images\nnames: [cat]\n", "path is 5; expected a path"),
    (f"train: 0x1{'0' * 5000}\nnames: [cat]\n", "train is an integer of 20001 bits; expected a path"),
    (f"train: {'x' * 5000}\nnames: [cat]\n", "does not exist"),
    ("train: labels\nnames: [cat]\n", "holds no pictures"),
    ("train: images/a.png\nnames: [cat]\n", "cannot be read|expected a path on each line"),
    (f"train: images\nnames: [{'x' * 7_000_000}]\n", r"has \d+ bytes; expected at most 6400000; see --limit labels=N"),
]


@pytest.mark.parametrize(("yaml", "message"), YAML, ids=range(len(YAML)))
def test_a_data_yaml(yaml: str, message: str, tmp_path: Path) -> None:
    yolo(tmp_path, yaml)
    with pytest.raises(AnnotationError, match=message) as raised:
        read_split(tmp_path, "train", "detection")
    assert len(str(raised.value)) < 600
    assert not isinstance(raised.value, DatasetError)
    assert "\n" not in str(raised.value)


def test_names_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo(tmp_path, "train: images\nnames: [a, b, c, d]\n")
    monkeypatch.setattr(limits, "_current", limits.Limits(labels=3))
    with pytest.raises(AnnotationError, match="the number of names is 4; expected at most 3"):
        read_split(tmp_path, "train", "detection")


LINES: list[tuple[bytes, str]] = [
    (b"0 nan .5 .2 .2", "is no line of a YOLO file"),
    (b"0 inf .5 .2 .2", "is no line of a YOLO file"),
    (b"0 1e300 .5 .2 .2", "is no line of a YOLO file"),
    (b"0 1e999 .5 .2 .2", "is no line of a YOLO file"),
    (b"0 1e7 .5 .2 .2", "is no line of a YOLO file"),
    (b"0 .5 .5 .2", "is no line of a YOLO file"),
    (b"0 .5 .5 .2 .2 .2", "is no line of a YOLO file"),
    (b"0", "is no line of a YOLO file"),
    (b"x .5 .5 .2 .2", "is no line of a YOLO file"),
    (b"0.0 .5 .5 .2 .2", "is no line of a YOLO file"),
    (b"1_0 .5 .5 .2 .2", "is no line of a YOLO file"),
    (b"0 0_5 .5 .2 .2", "is no line of a YOLO file"),
    (b"0 0x1 .5 .2 .2", "is no line of a YOLO file"),
    (b"9" * 5000 + b" .5 .5 .2 .2", "is no line of a YOLO file"),
    (b"0 " + b"9" * 5000 + b" .5 .2 .2", "is no line of a YOLO file"),
    ("\u0663 .5 .5 .2 .2".encode(), "is no line of a YOLO file"),
    (b"0 .5 .5 .2 .2\x00", "is no line of a YOLO file"),
    (b"\xff\xfe\x00", "unreadable"),
    (bytes(range(256)) * 10, "unreadable"),
    (b"-1 .5 .5 .2 .2", "category_id is -1"),
    (b"7 .5 .5 .2 .2", "category_id is 7"),
    (b"0 .5 .5 0 .2", "has no area"),
    (b"0 .5 .5 -.2 .2", "has no area"),
    (b"0 5 .5 .2 .2", "is outside of its image"),
    (b"0 .1 .1 nan .1 .2 .2", "is no line of a YOLO file"),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=range(len(LINES)))
def test_a_line_of_a_text_file(line: bytes, message: str, tmp_path: Path) -> None:
    yolo(tmp_path, label=line)
    with pytest.raises(DatasetError, match=message) as raised:
        read_split(tmp_path, "train", "detection")
    assert "labels/a.txt" in str(raised.value) or "labels/b.txt" in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_text_file_that_is_too_large(tmp_path: Path) -> None:
    yolo(tmp_path, label=b"0 .5 .5 .2 .2\n" * 1_300_000)
    with pytest.raises(DatasetError, match=r"unreadable: it has 18200000 bytes; expected at most 16777216"):
        read_split(tmp_path, "train", "detection")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("name", ["labels/a.txt", "images/a.png", "list.txt"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    yolo(tmp_path, "train: list.txt\nnames: [cat]\n" if name == "list.txt" else "train: images\nnames: [cat]\n")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name == "images/a.png":  # no picture at all: the other one is the whole data set
        with pytest.raises(AnnotationError, match="has 1 images and no splits"):
            read_split(tmp_path, "train", "detection")
        return
    with pytest.raises(AnnotationError, match=rf"{name}( is|: 'unreadable: it is) not a regular file"):
        read_split(tmp_path, "train", "detection")


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff", "cannot be read"), (b"a\0b\n", "has a null byte"), (b"gone.png\n", "has 1 images")]
)
def test_a_list_of_pictures(content: bytes, message: str, tmp_path: Path) -> None:
    yolo(tmp_path, "train: list.txt\nnames: [cat]\n")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        read_split(tmp_path, "train", "detection")


def coco(root: Path, **image: Any) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "secret.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", **image}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return root


@pytest.mark.parametrize(
    "name", ["../secret.png", "..\\secret.png", "b/../../secret.png", "{root}/secret.png", "C:\\secret.png"]
)
def test_a_picture_outside_of_the_folder_is_not_read(name: str, tmp_path: Path) -> None:
    coco(tmp_path, file_name=name.format(root=tmp_path))
    with pytest.raises(DatasetError, match=r"image 1: file_name: .*secret\.png does not exist") as raised:
        read_split(tmp_path, "train", "detection")
    assert str(tmp_path / "train") in str(raised.value)
    for picture in find_split(tmp_path, "train", "detection").pictures():
        assert tmp_path / "train" in picture.parents


@pytest.mark.parametrize("name", ["../a.png", "/data/upload/a.png", "C:\\x\\a.png", "..\\a.png"])
def test_a_name_of_a_tools_server_is_found_in_the_folder(name: str, tmp_path: Path) -> None:
    coco(tmp_path, file_name=name)
    document = read_document(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    assert document["images"][0]["file_name"] == "a.png"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"file_name": 5}, "file_name is 5: expected the name of a picture"),
        ({"file_name": None}, "file_name is None"),
        ({"file_name": ""}, "file_name is ''"),
        ({"file_name": "a\0.png"}, "it has a null byte"),
        ({"file_name": "x" * 300}, "file_name"),
        ({"width": 0}, "width is 0: expected at least 1 pixel"),
        ({"height": -5}, "height is -5: expected at least 1 pixel"),
        ({"width": 2.5}, "width is 2.5: expected an integer"),
        ({"width": True}, "width is True: expected an integer"),
        ({"width": 2**62}, "width and height are 4611686018427387904x10: expected 20x10"),
        ({"id": "1"}, "id is '1': expected an integer"),
        ({"id": 1.5}, "id is 1.5: expected an integer"),
    ],
)
def test_an_image_of_a_coco_file(image: dict[str, Any], message: str, tmp_path: Path) -> None:
    coco(tmp_path, **image)
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, "train", "detection")


def test_a_place_in_a_coco_file_is_no_line_of_yolo(tmp_path: Path) -> None:
    """The key that our own reader of YOLO sets may be in any file."""
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "place": "x"}]
    file.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="x: no bbox"):
        read_split(tmp_path, "train", "detection")
