"""What a user may say about where the data is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detr_export.data.sources import DataSource
from detr_export.data.splits import read_files
from detr_export.runtimes.errors import AnnotationError, InputError

A, B = Path("a.json"), Path("b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either a data set"),
        ({"root": B, "annotations": A, "images": B}, "give either a data set"),
        ({"annotations": A}, "--annotations and --images go together"),
        ({"root": B, "images": B}, "--annotations and --images go together"),
        ({"root": B, "val_annotations": A}, "--val-annotations goes with --annotations"),
        ({"annotations": A, "images": B, "val_images": B}, "--val-images goes with --val-annotations"),
    ],
)
def test_refusals(given: dict[str, Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataSource(**given)


def write(file: Path, names: list[str]) -> Path:
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    annotations = [{"image_id": index, "category_id": 1, "bbox": [1, 1, 3, 3]} for index in range(len(names))]
    categories = [{"id": 1, "name": "coin"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def test_plain_files(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(5)]
    (tmp_path / "pictures" / "below").mkdir(parents=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "below" / name)
    whole, val = write(tmp_path / "a.json", names), write(tmp_path / "b.json", names[:2])

    def found(source: DataSource) -> list[set[str]]:
        files = (source.training("detection"), source.validation("detection"))
        return [{record["image"].name for record in read_files(item).records} for item in files]

    train, held_out = found(DataSource(None, whole, tmp_path / "pictures"))
    assert len(held_out) == 1
    assert train | held_out == set(names)
    assert not train & held_out
    assert found(DataSource(None, whole, tmp_path / "pictures", val)) == [set(names), set(names[:2])]
    with pytest.raises(AnnotationError, match=r"c\.json does not exist; expected a COCO annotation file"):
        DataSource(None, tmp_path / "c.json", tmp_path).training("detection")
    with pytest.raises(AnnotationError, match="nowhere does not exist; expected a folder with the pictures of"):
        DataSource(None, whole, tmp_path / "nowhere").training("detection")
    with pytest.raises(AnnotationError, match="a does not exist; expected a folder with the PNGs of"):
        DataSource(None, whole, tmp_path / "pictures").training("panoptic")


def test_json(tmp_path: Path) -> None:
    source = DataSource(None, tmp_path / "a.json", tmp_path, tmp_path / "b.json")
    assert DataSource.from_dict(json.loads(json.dumps(source.to_dict()))) == source
    assert DataSource(Path("here")).to_dict() == {"root": str(Path.cwd() / "here")}
