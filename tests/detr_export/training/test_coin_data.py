"""The drawn coins: reproducible, varied, and their boxes and outlines are those of what is seen."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detr_export.data.splits import read_split
from detr_export.runtimes.errors import InputError, OutputError
from detr_export.training.coin_data import CLASSES, COINS, CoinPicture, draw_picture, outline
from detr_export.training.demo_data import SHAPES
from detr_export.training.drawn_split import write_split
from detr_export.training.roboflow_split import write_roboflow_split
from detr_export.training.table_data import TABLES
from tests.detr_export.recorder import Recorder

PICTURES = 40


@pytest.fixture(scope="module")
def pictures() -> list[CoinPicture]:
    return [draw_picture("train", index) for index in range(PICTURES)]


def test_a_picture_depends_on_split_and_index_alone(pictures: list[CoinPicture]) -> None:
    again = draw_picture("train", 3)
    assert np.array_equal(again.pixels, pictures[3].pixels)
    assert np.array_equal(again.ids, pictures[3].ids)
    assert again.coins == pictures[3].coins
    for other in (draw_picture("val", 3), pictures[4]):
        assert other.coins != again.coins


def test_pictures_are_varied(pictures: list[CoinPicture]) -> None:
    counts = Counter(coin.label for picture in pictures for coin in picture.coins)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= 0.15 * sum(counts.values())
    assert {len(picture.coins) for picture in pictures} == set(range(2, 9))
    sizes = {picture.ids.shape for picture in pictures}
    assert len(sizes) > PICTURES / 2
    assert all(320 <= max(size) <= 400 and 240 <= min(size) <= 300 for size in sizes)
    assert {height > width for height, width in sizes} == {True, False}


def test_coins_lie_on_each_other_a_little(pictures: list[CoinPicture]) -> None:
    """What is seen of a coin, as a share of its ellipse."""
    shares = np.array(
        [
            (picture.ids == number).sum() / (np.pi * coin.radius**2 * picture.tilt)
            for picture in pictures
            for number, coin in enumerate(picture.coins, start=1)
        ]
    )
    assert shares.min() > 0.55
    assert 0.05 < (shares < 0.97).mean() < 0.6


def test_classes_differ_in_colour_and_size(pictures: list[CoinPicture]) -> None:
    radii: dict[int, list[float]] = {label: [] for label in CLASSES}
    redness: dict[int, list[float]] = {label: [] for label in CLASSES}  # red to blue, beside the table
    for picture in pictures:
        table = picture.pixels[picture.ids == 0].mean(axis=0)
        for number, coin in enumerate(picture.coins, start=1):
            radii[coin.label].append(coin.radius / max(other.radius for other in picture.coins))
            red, green, blue = picture.pixels[picture.ids == number].mean(axis=0)
            assert abs(np.array([red, green, blue]) - table).max() > 5
            redness[coin.label].append(red / blue)
    by_radius = sorted(CLASSES, key=lambda label: float(np.mean(radii[label])))
    assert by_radius == [1, 2, 3, 4]
    means = {CLASSES[label]: np.median(values) for label, values in redness.items()}
    assert means["silver"] < means["bimetal"] < min(means["copper"], means["gold"])


def test_outlines_are_what_is_seen(pictures: list[CoinPicture]) -> None:
    for picture in pictures:
        height, width = picture.ids.shape
        for number in range(1, len(picture.coins) + 1):
            large = Image.new("1", (width * 4, height * 4))
            ImageDraw.Draw(large).polygon([tuple(corner) for corner in outline(picture, number) * 4], fill=1)
            filled = np.asarray(large)[2::4, 2::4]  # at the centres of the pixels
            seen = picture.ids == number
            assert (filled & seen).sum() / (filled | seen).sum() > 0.96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    progress = Recorder()
    root = write_split(tmp_path_factory.mktemp("coins"), 4, "train", COINS, progress)
    assert progress.steps[-1] == (4, 4, "")
    return root


def loaded(file: Path) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(file)


def test_boxes_are_tight(folder: Path) -> None:
    coco = loaded(folder / "annotations" / "instances_train.json")
    assert {item["id"]: item["name"] for item in coco.loadCats(coco.getCatIds())} == CLASSES
    for index, image_id in enumerate(coco.getImgIds()):
        picture = draw_picture("train", index)
        items = coco.loadAnns(coco.getAnnIds(image_id))
        assert [item["category_id"] for item in items] == [coin.label for coin in picture.coins]
        for number, item in enumerate(items, start=1):
            seen = picture.ids == number
            x, y, width, height = item["bbox"]
            inside = seen[y : y + height, x : x + width]
            assert item["area"] == seen.sum() == inside.sum()
            assert inside.any(axis=1)[[0, -1]].all()
            assert inside.any(axis=0)[[0, -1]].all()
            # pycocotools fills polygons half a pixel larger.
            assert (
                coco_mask.iou([coco.annToRLE(item)], [coco_mask.encode(np.asfortranarray(seen, np.uint8))], [0])[0, 0] > 0.9
            )


def test_pictures_are_where_the_annotations_say(folder: Path) -> None:
    split = read_split(folder, "train", "detection")
    assert split.categories == CLASSES
    for index, record in enumerate(split.records):
        with Image.open(record["image"]) as image:
            assert np.abs(np.asarray(image).astype(float) - draw_picture("train", index).pixels).mean() < 6  # JPEG


def test_roboflow_layout(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_roboflow_split(tmp_path, 3, split, COINS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train", "valid"]
    file = tmp_path / "valid" / "_annotations.coco.json"
    document: dict[str, Any] = json.loads(file.read_text())
    assert document["categories"] == [
        {"id": 0, "name": "coins", "supercategory": "none"},
        *({"id": id_, "name": name, "supercategory": "coins"} for id_, name in CLASSES.items()),
    ]
    assert [image["id"] for image in document["images"]] == [0, 1, 2]
    assert [item["id"] for item in document["annotations"]] == list(range(len(document["annotations"])))
    coco = loaded(file)
    for index, image in enumerate(document["images"]):
        picture = draw_picture("valid", index)
        name = f"{index + 1:06d}"
        assert re.fullmatch(name + r"_jpg\.rf\.[0-9a-f]{32}\.jpg", image["file_name"])
        assert (image["extra"], image["license"]) == ({"name": f"{name}.jpg"}, document["licenses"][0]["id"])
        assert "date_captured" in image
        with Image.open(file.with_name(image["file_name"])) as stored:
            assert (stored.height, stored.width) == (image["height"], image["width"]) == picture.ids.shape
        items = coco.loadAnns(coco.getAnnIds(index))
        expected = [(item["category_id"], item["bbox"]) for item in COINS.draw("valid", index).instances]
        assert [(item["category_id"], item["bbox"]) for item in items] == expected
        for item in items:
            assert item["area"] == item["bbox"][2] * item["bbox"][3]
            assert (item["segmentation"], item["iscrowd"]) == ([], 0)


def test_classes_count_from_1_in_roboflow_layout(tmp_path: Path) -> None:
    """Those of the tables count from 0, where the data set itself would be."""
    write_roboflow_split(tmp_path, 1, "train", TABLES)
    document = json.loads((tmp_path / "train" / "_annotations.coco.json").read_text())
    assert [(item["id"], item["name"]) for item in document["categories"]][:3] == [
        (0, "tables"),
        (1, "table"),
        (2, "table column"),
    ]
    labels = [item["category_id"] - 1 for item in TABLES.draw("train", 0).instances]
    assert [item["category_id"] - 2 for item in document["annotations"]] == labels


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no panoptic maps, which shapes have"):
        write_roboflow_split(tmp_path, 1, "train", SHAPES)
    with pytest.raises(InputError, match="named 'val'; Roboflow's layout has the splits train, valid, test"):
        write_roboflow_split(tmp_path, 1, "val", COINS)
    with pytest.raises(InputError, match="0 images"):
        write_roboflow_split(tmp_path, 0, "train", COINS)
    assert not list(tmp_path.iterdir())
    write_roboflow_split(tmp_path, 1, "train", COINS)
    with pytest.raises(OutputError, match=r"_annotations\.coco\.json exists; remove that split first"):
        write_roboflow_split(tmp_path, 1, "train", COINS)
