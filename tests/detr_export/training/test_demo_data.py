"""The drawn data set: reproducible, and its boxes, masks and panoptic maps agree with each other."""

from __future__ import annotations

import io
import json
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import DetrImageProcessor
from detr_export.runtimes.errors import DetrError, InputError, OutputError
from detr_export.runtimes.processing.annotations.panoptic import rgb_to_id
from detr_export.runtimes.processing.rle import decode_rle
from detr_export.training.demo_data import STUFF, THINGS, draw_picture, write_demo_data
from tests.detr_export.recorder import Recorder


def test_a_picture_depends_on_split_and_index_alone() -> None:
    first, again = draw_picture("train", 3), draw_picture("train", 3)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.ids, again.ids)
    for other in (draw_picture("train", 4), draw_picture("val", 3)):
        assert other.pixels.shape != first.pixels.shape or np.abs(other.pixels.astype(int) - first.pixels).mean() > 10


def test_pictures_are_varied() -> None:
    pictures = [draw_picture("train", index) for index in range(60)]
    counts = Counter(label for picture in pictures for label in picture.categories.values())
    assert set(counts) == set(THINGS) | set(STUFF)
    assert min(counts.values()) >= 8
    ratios = [picture.ids.shape[1] / picture.ids.shape[0] for picture in pictures]
    assert min(ratios) < 0.8
    assert max(ratios) > 1.25
    things = [sum(label in THINGS for label in picture.categories.values()) for picture in pictures]
    assert min(things) == 1
    assert max(things) >= 5


def test_segments_are_large_enough_to_be_found() -> None:
    for index in range(60):
        picture = draw_picture("val", index)
        areas = np.bincount(picture.ids.ravel(), minlength=len(picture.categories) + 1)
        assert len(areas) == len(picture.categories) + 1
        assert areas[1:].min() > 200
        assert areas[0] < 0.1 * areas.sum()  # hardly anything belongs to no segment
        labels = [label for label in picture.categories.values() if label in STUFF]
        assert len(labels) == len(set(labels)), "two segments of one stuff"


def test_things_overlap() -> None:
    """A disc that nothing lies on fills 79 % of its box; with overlaps many fill less."""
    hidden = 0
    for index in range(40):
        picture = draw_picture("train", index)
        for id_, label in picture.categories.items():
            mask = picture.ids == id_
            rows, columns = np.nonzero(mask)
            if THINGS.get(label) == "disc":
                hidden += mask.sum() < 0.74 * np.ptp(rows) * np.ptp(columns)
    assert hidden >= 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("data"), 6, "val")


def load(folder: Path, kind: str) -> dict:
    return json.loads((folder / "annotations" / f"{kind}_val.json").read_text())


def test_boxes_masks_and_maps_agree(folder: Path) -> None:
    instances, panoptic = load(folder, "instances"), load(folder, "panoptic")
    assert instances["images"] == panoptic["images"]
    sizes = {item["id"]: (item["height"], item["width"]) for item in instances["images"]}
    assert len(sizes) == 6
    assert len({item["id"] for item in instances["annotations"]}) == len(instances["annotations"])
    for record, image in zip(panoptic["annotations"], panoptic["images"], strict=True):
        ids = rgb_to_id(np.asarray(Image.open(folder / "annotations" / "panoptic_val" / record["file_name"])))
        with Image.open(folder / "val" / image["file_name"]) as picture:
            assert (picture.height, picture.width) == ids.shape == sizes[record["image_id"]]
        of_image = [item for item in instances["annotations"] if item["image_id"] == record["image_id"]]
        things = [segment for segment in record["segments_info"] if segment["category_id"] in THINGS]
        assert len(of_image) == len(things) >= 1
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in record["segments_info"]}
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            rows, columns = np.nonzero(mask)
            x, y, width, height = segment["bbox"]
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert segment["area"] == mask.sum()
        for item, segment in zip(of_image, things, strict=True):
            assert np.array_equal(decode_rle(item["segmentation"]), ids == segment["id"])
            assert (item["bbox"], item["area"], item["category_id"]) == (
                segment["bbox"],
                segment["area"],
                segment["category_id"],
            )


def test_pycocotools_reads_the_instances(folder: Path) -> None:
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    with redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations" / "instances_val.json")
    for item in coco.loadAnns(coco.getAnnIds()):
        assert coco_mask.area(item["segmentation"]) == item["area"]
        assert coco_mask.toBbox(item["segmentation"]).tolist() == item["bbox"]


def test_the_processor_reads_both_formats(folder: Path) -> None:
    instances, panoptic = load(folder, "instances"), load(folder, "panoptic")
    image = Image.open(folder / "val" / panoptic["images"][0]["file_name"])
    record = {"image_id": 1, "annotations": [item for item in instances["annotations"] if item["image_id"] == 1]}
    boxes = DetrImageProcessor()(image, record, return_segmentation_masks=True)["labels"][0]
    segments = DetrImageProcessor(format="coco_panoptic")(
        image, panoptic["annotations"][0], masks_path=folder / "annotations" / "panoptic_val"
    )["labels"][0]
    things = len(record["annotations"])
    assert np.array_equal(boxes["class_labels"], segments["class_labels"][:things])
    assert np.array_equal(boxes["masks"], segments["masks"][:things])


def test_splits_share_a_folder_and_are_not_overwritten(tmp_path: Path) -> None:
    progress = Recorder()
    write_demo_data(tmp_path, 2, "train", progress)
    write_demo_data(tmp_path, 1, "val")
    assert progress.steps == [(1, 2, ""), (2, 2, "")]
    assert sorted(file.name for file in tmp_path.rglob("*.jpg")) == ["000001.jpg", "000001.jpg", "000002.jpg"]
    with pytest.raises(OutputError, match=r"instances_val\.json exists; remove that split first"):
        write_demo_data(tmp_path, 1, "val")


@pytest.mark.parametrize(
    ("images", "split", "error", "message"),
    [(0, "train", InputError, "0 images: expected at least 1"), (1, "../train", InputError, "the split is named")],
)
def test_refusals(images: int, split: str, error: type[DetrError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        write_demo_data(tmp_path, images, split)
    assert not list(tmp_path.iterdir())
