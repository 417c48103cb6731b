"""Which pictures are calibrated on, and which folders are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from detr_export.graphs.int8.pictures import DEFAULT_IMAGES, find_pictures, require_apart
from detr_export.runtimes.errors import AnnotationError, ImageError, InputError


def draw(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        Image.new("RGB", (8, 8), (index % 256, index // 256, 7)).save(folder / f"{index:04}.png")


def test_all_of_a_folder_and_of_those_in_it(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "b", 2)
    draw(tmp_path, 3, 10)
    (tmp_path / "notes.txt").write_text("no picture")
    shutil.copy(tmp_path / "0010.png", tmp_path / ".hidden.png")
    assert [path.name for path in find_pictures(tmp_path)] == ["0010.png", "0011.png", "0012.png", "0000.png", "0001.png"]


def test_so_many_at_equal_distances(tmp_path: Path) -> None:
    draw(tmp_path, DEFAULT_IMAGES + 20)
    found = find_pictures(tmp_path)
    assert len(found) == DEFAULT_IMAGES
    assert (found[0].name, found[-1].name) == ("0000.png", "0119.png")
    assert [path.name for path in find_pictures(tmp_path, 3)] == ["0000.png", "0059.png", "0119.png"]
    assert len(find_pictures(tmp_path, DEFAULT_IMAGES + 20)) == DEFAULT_IMAGES + 20


def test_what_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    draw(tmp_path, 5)
    (tmp_path / "0000.png").write_bytes(b"damaged")
    assert [path.name for path in find_pictures(tmp_path, 3)] == ["0001.png", "0002.png", "0004.png"]
    with pytest.raises(ImageError, match="holds 4 readable pictures, and 5 were asked for"):
        find_pictures(tmp_path, 5)


def test_a_coco_folder(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        draw(tmp_path / split, 2)
    draw(tmp_path / "annotations" / "panoptic_train2017", 2)
    with pytest.raises(AnnotationError, match=r"should hold one annotation file named instances_train\*"):
        find_pictures(tmp_path)
    images = [{"id": number, "file_name": f"{number:04}.png"} for number in range(2)]
    document = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    assert {path.parent.name for path in find_pictures(tmp_path)} == {"train2017"}


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no pictures to calibrate on"):
        find_pictures(tmp_path)
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"none of the 1 pictures in .* can be read"):
        find_pictures(tmp_path)
    with pytest.raises(InputError, match=r"a\.png is not a folder"):
        find_pictures(tmp_path / "a.png")
    with pytest.raises(InputError, match="calibration_images is 0"):
        find_pictures(tmp_path, 0)


def test_pictures_that_are_scored_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "train", 3)
    draw(tmp_path / "val", 3, 100)
    pictures, scored = (sorted((tmp_path / name).iterdir()) for name in ("train", "val"))
    require_apart(pictures, scored)
    with pytest.raises(InputError, match=r"0001\.png is .*0001\.png, which the file is scored on"):
        require_apart(pictures, [*scored, pictures[1]])
    shutil.copy(pictures[2], tmp_path / "val" / "copy.png")
    with pytest.raises(InputError, match=r"0002\.png is .*copy\.png, which the file is scored on"):
        require_apart(pictures, [*scored, tmp_path / "val" / "copy.png"])
    (tmp_path / "link.png").symlink_to(scored[0])
    with pytest.raises(InputError, match="calibrate on other pictures"):
        require_apart([tmp_path / "link.png"], scored)
