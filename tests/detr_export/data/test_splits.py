"""Reading COCO folders: what is found, what is left out, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_export.data.splits import read_split
from detr_export.runtimes.errors import AnnotationError
from detr_export.training.demo_data import STUFF, THINGS, write_demo_data


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with 24 training images; not to be changed."""
    return write_demo_data(tmp_path_factory.mktemp("shapes"), 24, "train")


def test_detection(shapes: Path) -> None:
    split = read_split(shapes, "train", "detection")
    assert (len(split), split.stuff, split.masks) == (24, (), None)
    assert split.id2label == {0: "N/A", **THINGS}
    assert split.categories == THINGS
    assert all(record["image"].is_file() and record["annotations"] for record in split.records)


def test_panoptic(shapes: Path) -> None:
    split = read_split(shapes, "train", "panoptic")
    assert split.stuff == tuple(STUFF)
    assert split.id2label == {0: "N/A", **THINGS, **STUFF}
    assert split.masks is not None
    assert all((split.masks / record["file_name"]).is_file() for record in split.records)


def written(root: Path, name: str, document: dict[str, Any]) -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(document))
    return root


def test_names_with_a_year_crowds_and_images_without_objects(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / "train2017" / name)
    items = [
        {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1},
    ]
    document = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": items,
        "categories": [{"id": 3, "name": "car"}],
    }
    split = read_split(written(tmp_path, "instances_train2017.json", document), "train", "detection")
    assert [record["annotations"] for record in split.records] == [items[:1], []]
    assert split.records[1]["image"] == tmp_path / "train2017" / "b.jpg"
    assert split.id2label == {0: "N/A", 1: "N/A", 2: "N/A", 3: "car"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not a COCO instances file"),
        ({"images": [], "annotations": []}, "is not a COCO instances file: the document: no categories"),
        ({"images": {}, "annotations": [], "categories": []}, "is not a COCO instances file: images is a dict"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, "has no images to train on"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": []}, "has no categories"),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [{"id": -1, "name": "a"}]},
            "category ids go from -1 to -1",
        ),
        *(
            ({"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": categories}, message)
            for categories, message in (
                ([{"id": "1", "name": "a"}], "id is '1': expected an integer"),
                ([{"id": True, "name": "a"}], "id is True: expected an integer"),
                ([{"id": 1.5, "name": "a"}], "id is 1.5: expected an integer"),
                ([{"id": 1, "name": 2}], "category 1: name is 2: expected text"),
                ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "both have id 1: expected every id once"),
                ([3], r"categories\[0\] is a int: expected a dict"),
            )
        ),
    ],
)
def test_malformed_files(document: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(AnnotationError, match=message):
        read_split(written(tmp_path, "instances_train.json", document), "train", "detection")


def test_missing_and_ambiguous_files(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="is no data set that is known"):
        read_split(tmp_path, "train", "detection")
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    with pytest.raises(AnnotationError, match=r"should hold one annotation file named instances_train\*.json; found none"):
        read_split(tmp_path, "train", "detection")
    shutil.copy(shapes / "annotations" / "panoptic_train.json", annotations)
    with pytest.raises(AnnotationError, match="train does not exist"):
        read_split(tmp_path, "train", "panoptic")
    (tmp_path / "train").mkdir()
    with pytest.raises(AnnotationError, match="panoptic_train does not exist"):
        read_split(tmp_path, "train", "panoptic")
    shutil.copy(shapes / "annotations" / "panoptic_train.json", annotations / "panoptic_train2017.json")
    with pytest.raises(AnnotationError, match=r"found panoptic_train\.json, panoptic_train2017\.json"):
        read_split(tmp_path, "train", "panoptic")
    (annotations / "panoptic_train2017.json").unlink()
    (annotations / "panoptic_train").mkdir()
    (annotations / "panoptic_train.json").write_text("{")
    with pytest.raises(AnnotationError, match=r"panoptic_train\.json is not JSON"):
        read_split(tmp_path, "train", "panoptic")
