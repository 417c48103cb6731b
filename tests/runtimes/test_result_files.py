"""Files of results, read by those who will read them: pycocotools, the csv module, pyarrow."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_export.data.yolo import read_yolo
from detr_export.runtimes import Detections, Predictor, Segmentation
from detr_export.runtimes.errors import AnnotationError, BackendError, InputError, OutputError
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.result_files import result_file
from detr_export.runtimes.results.coco_images import read_image_ids
from detr_export.runtimes.results.interop.supervision_detections import supervision  # without a warning
from detr_export.runtimes.results.rows import COLUMNS, csv_of, rows_of
from detr_export.runtimes.sources import find_sources
from tests import models

ODD = 'a, "b"\n.png'


@pytest.fixture(scope="module")
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx) as opened:
        yield opened


@pytest.fixture(scope="module")
def segmenting(segmenter_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(segmenter_onnx) as opened:
        yield opened


@pytest.fixture
def folder(photo: Path, tmp_path: Path) -> Path:
    """Two pictures, one with an odd name, and between them a file that is none."""
    place = tmp_path / "images"
    (place / "sub").mkdir(parents=True)
    whole = Image.open(photo)
    whole.crop((0, 0, 200, 150)).save(place / ODD)
    (place / "bad.jpg").write_bytes(b"hello")
    whole.crop((100, 100, 400, 300)).save(place / "sub" / "c.png")
    return place


def predicted(predictor: Predictor, folder: Path, form: str, task: str = "detection", **options: Any) -> list[Any]:
    given = find_sources([str(folder)]).pictures
    out = folder.parent / "out"
    outcomes = list(predict_files(predictor, given, 0.0, out, task=task, form=form, **options))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    return [outcome for outcome in outcomes if outcome.error is None]


# ---- COCO ---------------------------------------------------------------------------------------------------------------


def average_precision(truth: dict[str, Any], results: Path, kind: str, folder: Path) -> float:
    """AP of a file of results, by pycocotools."""
    file = folder / "truth.json"
    file.write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
        evaluated = COCOeval(coco, coco.loadRes(str(results)), kind)
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return float(evaluated.stats[0])


def truth_of(outcomes: list[Any], ids: list[int], shift: float = 0.0) -> dict[str, Any]:
    """Annotations that are what was found, or lie beside it."""
    found = [entry for number, item in zip(ids, outcomes, strict=True) for entry in item.result.to_coco(number)]
    for entry in found:
        entry["bbox"][0] += shift
    return {
        "info": {},
        "images": [
            {
                "id": number,
                "file_name": item.source.file,
                "height": item.result.image_size[0],
                "width": item.result.image_size[1],
            }
            for number, item in zip(ids, outcomes, strict=True)
        ],
        "annotations": [
            {**entry, "id": index, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
            for index, entry in enumerate(found, 1)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "Car"}, {"id": 4, "name": "cat"}],
    }


def test_coco_with_ids_that_are_made_up(predictor: Predictor, folder: Path) -> None:
    outcomes = predicted(predictor, folder, "coco", clip=True)
    out = folder.parent / "out"
    assert {path.name for path in out.iterdir() if path.suffix == ".json"} == {"predictions.coco.json", "images.coco.json"}
    with contextlib.redirect_stdout(io.StringIO()):
        images = COCO(out / "images.coco.json")
        loaded = images.loadRes(str(out / "predictions.coco.json"))
    assert [(item["id"], item["file_name"]) for item in images.loadImgs(images.getImgIds())] == [(1, ODD), (3, "sub/c.png")]
    assert [(item["height"], item["width"]) for item in images.imgs.values()] == [(150, 200), (200, 300)]
    assert [(item["id"], item["name"]) for item in images.cats.values()] == [(1, "person"), (3, "car"), (4, "cat")]
    for number, outcome in zip((1, 3), outcomes, strict=True):
        entries = loaded.loadAnns(loaded.getAnnIds(number))
        boxes = np.array([entry["bbox"] for entry in entries])
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], outcome.result.boxes[:, 2:], rtol=1e-5)
        assert [entry["category_id"] for entry in entries] == outcome.result.labels.tolist()
        assert [entry["score"] for entry in entries] == outcome.result.scores.tolist()


def test_coco_with_the_ids_of_a_data_set(predictor: Predictor, folder: Path) -> None:
    given = find_sources([str(folder / "sub"), str(folder / ODD)]).pictures
    found = list(predict_files(predictor, given, 0.0))
    truth = truth_of(found, [70, 7])
    annotations = folder.parent / "instances.json"
    annotations.write_text(json.dumps(truth))
    out = folder.parent / "out"
    list(predict_files(predictor, given, 0.0, out, form="coco", annotations=annotations))
    results = out / "predictions.coco.json"
    assert {entry["image_id"] for entry in json.loads(results.read_text())} == {7, 70}
    assert not (out / "images.coco.json").exists()
    assert average_precision(truth, results, "bbox", folder.parent) == pytest.approx(1.0)
    assert average_precision(truth_of(found, [7, 70]), results, "bbox", folder.parent) < 0.9  # the ids exchanged
    assert average_precision(truth_of(found, [70, 7], 1e4), results, "bbox", folder.parent) < 0.1


def test_coco_of_instances_has_masks(segmenting: Predictor, folder: Path) -> None:
    outcomes = predicted(segmenting, folder, "coco", "instances")
    assert all(isinstance(outcome.result, Segmentation) for outcome in outcomes)
    assert sum(len(outcome.result) for outcome in outcomes) > 1
    truth = truth_of(outcomes, [1, 3])
    results = folder.parent / "out" / "predictions.coco.json"
    for kind in ("bbox", "segm"):
        assert average_precision(truth, results, kind, folder.parent) == pytest.approx(1.0)


IMAGES = [{"id": 5, "file_name": "sub/a.jpg"}, {"id": 6, "file_name": "b.jpg"}]
CATEGORIES = [{"id": 1, "name": "person"}]
LABELS = {0: "N/A", 1: "person"}


def document(images: list[dict[str, Any]] = IMAGES, categories: list[dict[str, Any]] = CATEGORIES) -> dict[str, Any]:
    return {"images": images, "annotations": [], "categories": categories}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["sub/a.jpg", "b.jpg"], [5, 6]),
        (["b.jpg", "/data/images/sub/a.jpg"], [6, 5]),
        (["photos/b.jpg"], [6]),
        ([], []),
    ],
)
def test_ids_by_the_ends_of_paths(files: list[str], ids: list[int]) -> None:
    assert read_image_ids(document(), files, LABELS) == ids


@pytest.mark.parametrize(
    ("given", "files", "message"),
    [
        (document(), ["a.jpg"], "a.jpg is not among the 2 images of the annotations"),
        (document(), ["x/b.jpg", "b.jpg"], "x/b.jpg and b.jpg both are image 6"),
        (document([*IMAGES, {"id": 7, "file_name": "b.jpg"}]), [], "images 6 and 7 both have the file_name b.jpg"),
        (document([{"id": 7}]), [], "image 7"),
        (document(categories=[{"id": 1, "name": "dog"}]), [], "categories have another name in the model"),
        ({"images": []}, [], "annotations"),
    ],
)
def test_ids_that_are_not_known_are_refused(given: dict[str, Any], files: list[str], message: str) -> None:
    with pytest.raises((InputError, AnnotationError), match=message):
        read_image_ids(given, files, LABELS)


# ---- rows ---------------------------------------------------------------------------------------------------------------


def assert_rows(rows: list[tuple[Any, ...]], outcomes: list[Any]) -> None:
    """Rows are what was found, to the last bit."""
    found = [(outcome.source.file, item) for outcome in outcomes for item in outcome.result]
    assert len(rows) == len(found) > 0
    for row, (file, item) in zip(rows, found, strict=True):
        assert row[:3] == (file, item.label, item.name)
        assert tuple(np.float32(value) for value in row[3:]) == (item.score, *item.box)


def test_csv(predictor: Predictor, folder: Path) -> None:
    outcomes = predicted(predictor, folder, "csv")
    with (folder.parent / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    assert tuple(head) == COLUMNS == ("file", "label", "class", "score", "x_min", "y_min", "x_max", "y_max")
    assert_rows([(line[0], int(line[1]), *line[2:]) for line in lines], outcomes)
    assert lines[0][0] == ODD


def test_parquet(predictor: Predictor, folder: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    outcomes = predicted(predictor, folder, "parquet")
    table = pq.read_table(folder.parent / "out" / "predictions.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        *zip(COLUMNS, ("string", "int64", "string", *["float"] * 5), strict=True)
    ]
    assert_rows([tuple(row.values()) for row in table.to_pylist()], outcomes)


@pytest.mark.parametrize("form", ["csv", "parquet", "coco", "json", "yolo", "labelme"])
def test_nothing_found(form: str, predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    list(predict_files(predictor, [photo], 1.0, tmp_path / "out", form=form))
    written = {path.name: path for path in (tmp_path / "out").iterdir() if path.suffix != ".png"}
    if form == "csv":
        assert written["predictions.csv"].read_text() == ",".join(COLUMNS) + "\n"
    elif form == "coco":
        assert json.loads(written["predictions.coco.json"].read_text()) == []
    elif form == "yolo":
        assert written["china.txt"].read_text() == ""
    elif form == "labelme":
        assert json.loads(written["china.json"].read_text())["shapes"] == []
    elif form == "parquet":
        import pyarrow.parquet as pq

        assert pq.read_table(written["predictions.parquet"]).num_rows == 0


def test_rows_of_instances(segmenting: Predictor, photo: Path) -> None:
    found = segmenting.segment_instances(photo, 0.0)
    rows = rows_of("a.jpg", found)
    assert len(rows) == len(found) > 0
    for row, segment in zip(rows, found.segments, strict=True):
        assert row == ("a.jpg", segment.label, segment.name, np.float32(segment.score), *segment.box)
    for other in (segmenting.segment_panoptic(photo, 0.0), segmenting.segment_semantic(photo)):
        with pytest.raises(InputError, match="is a map of pixels"):
            rows_of("a.jpg", other)


def test_a_name_that_is_no_text_is_spelled_with_backslashes() -> None:
    found = Detections(np.array([0.1], np.float32), np.array([1]), np.ones((1, 4), np.float32), ('a "b", c',), (4, 4))
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    text = csv_of(rows_of(name, found))
    (row,) = list(csv.reader(io.StringIO(text)))[1:]
    assert row == ["caf\\udce9.png", "1", 'a "b", c', "0.1", "1.0", "1.0", "1.0", "1.0"]
    text.encode()


@pytest.mark.parametrize("task", ["detection", "instances"])
def test_coco_has_what_fiftyone_reads(task: str, segmenting: Predictor, folder: Path) -> None:
    """What `COCODetectionDatasetImporter` and `add_coco_labels` of FiftyOne 1.22 take out of the two files."""
    predicted(segmenting, folder, "coco", task)
    images = json.loads((folder.parent / "out" / "images.coco.json").read_text())
    entries = json.loads((folder.parent / "out" / "predictions.coco.json").read_text())
    assert {"info", "licenses", "categories", "images", "annotations"} == set(images)
    sizes = {image["id"]: [image["height"], image["width"]] for image in images["images"]}
    assert all((folder / image["file_name"]).is_file() for image in images["images"])  # from the folder of the pictures on
    categories = {category["id"]: category["name"] for category in images["categories"]}
    assert entries
    for entry in entries:
        assert {type(entry[key]) for key in ("image_id", "category_id")} == {int}
        assert entry["image_id"] in sizes
        assert (
            entry["category_id"] in categories or models.LABELS[entry["category_id"]] == "N/A"
        )  # no trained model finds it
        assert len(entry["bbox"]) == 4
        assert 0 < entry["score"] <= 1
        if task == "instances":
            assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
            assert isinstance(entry["segmentation"]["counts"], str)


# ---- YOLO and LabelMe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["detection", "instances", "panoptic", "semantic"])
@pytest.mark.parametrize(("form", "suffix"), [("yolo", ".txt"), ("labelme", ".json")])
def test_a_file_beside_each_picture(form: str, suffix: str, task: str, segmenting: Predictor, folder: Path) -> None:
    outcomes = predicted(segmenting, folder, form, task)
    out = folder.parent / "out"
    beside = {outcome.picture.with_suffix(suffix): outcome for outcome in outcomes}
    names = {out / name for name in ("data.yaml", "classes.txt")} if form == "yolo" else set()
    written = {path for path in out.rglob("*") if path.is_file()}
    assert written == {*names, *beside, *(outcome.picture for outcome in outcomes)}
    for path, outcome in beside.items():
        text = path.read_text(encoding="utf-8")
        if form == "yolo":
            assert text == outcome.result.to_yolo()
        else:
            document = json.loads(text)
            assert document == outcome.result.to_labelme(document["imagePath"])
            assert (path.parent / document["imagePath"]).samefile(outcome.source.image)


def test_a_folder_of_yolo_is_opened_by_supervision_and_by_us(predictor: Predictor, folder: Path) -> None:
    (folder / ODD).rename(folder / "a.b.png")
    outcomes = predicted(predictor, folder, "yolo")
    out = folder.parent / "out"
    for place in (out, out / "sub"):
        opened = supervision.DetectionDataset.from_yolo(str(place), str(place), str(out / "data.yaml"))
        assert opened.classes == ["N/A", "person", "N/A", "car", "cat"]
        found = {Path(path).name: annotation for path, _, annotation in opened}
        for outcome in outcomes:
            if outcome.picture.parent == place:
                annotation = found.pop(outcome.picture.name)
                np.testing.assert_allclose(annotation.xyxy, outcome.result.boxes, atol=1e-3)
                assert annotation.class_id.tolist() == outcome.result.labels.tolist()
        assert not found
    document = read_yolo(out / "data.yaml", out, "train")
    assert [image["file_name"] for image in document["images"]] == ["a.b.png", "sub/c.png"]
    assert [item["category_id"] for item in document["annotations"]] == [
        label for outcome in outcomes for label in outcome.result.labels.tolist()
    ]
    assert (out / "classes.txt").read_text().splitlines() == ["N/A", "person", "N/A", "car", "cat"]


def test_labelme_gets_the_copy_where_it_cannot_open_the_original(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    pages = [Image.open(photo).resize((64, 48)), Image.open(photo).resize((48, 64))]
    pages[0].save(tmp_path / "two.tiff", save_all=True, append_images=pages[1:])
    given = find_sources([str(tmp_path / "two.tiff"), "-"], all_frames=True, stdin=io.BytesIO(photo.read_bytes())).pictures
    assert not [
        outcome.error
        for outcome in predict_files(predictor, given, output=tmp_path / "out", form="labelme")
        if outcome.error
    ]
    for name in ("two.page1", "two.page2", "stdin"):
        document = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert document["imagePath"] == f"{name}.png"
        with Image.open(tmp_path / "out" / f"{name}.png") as drawn:
            assert drawn.size == (document["imageWidth"], document["imageHeight"])


def test_labelme_finds_the_original_through_links(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "a.jpg").write_bytes(photo.read_bytes())
    list(predict_files(predictor, [tmp_path / "a.jpg"], output=tmp_path / "out", form="labelme"))
    assert json.loads((tmp_path / "out" / "a.json").read_text())["imagePath"] == "../../a.jpg"


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("yolo", "china.txt", "china.txt exists; add --overwrite"),
        ("yolo", "data.yaml", "data.yaml exists; add --overwrite"),
        ("labelme", "china.json", "china.json exists; add --overwrite"),
    ],
)
def test_no_file_beside_a_picture_is_overwritten(
    form: str, name: str, message: str, predictor: Predictor, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(OutputError, match=message):
        list(predict_files(predictor, [photo], output=tmp_path, form=form))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    list(predict_files(predictor, [photo], output=tmp_path, form=form, overwrite=True))
    assert (tmp_path / name).read_text() != "old"


def test_a_picture_named_as_the_classes_is_refused(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.jpg").write_bytes(photo.read_bytes())
    with pytest.raises(OutputError, match=r"classes.txt would hold the classes and also the objects of a picture"):
        list(predict_files(predictor, [tmp_path / "classes.jpg"], output=tmp_path / "out", form="yolo"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "output"), [("data", "out"), ("data/images", "images"), ("data/images", "images/out")])
def test_yolo_is_refused_where_its_tools_would_not_find_it(
    given: str, output: str, predictor: Predictor, photo: Path, tmp_path: Path
) -> None:
    """They look for `out/images/a.txt` at `out/labels/a.txt`; so does this project's reader."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.jpg").write_bytes(photo.read_bytes())
    pictures = find_sources([str(tmp_path / given)]).pictures
    with pytest.raises(OutputError, match="lies in a folder named images, and YOLO's tools look"):
        list(predict_files(predictor, pictures, output=tmp_path / output, form="yolo"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    list(
        predict_files(
            predictor, find_sources([str(tmp_path / "data" / "images")]).pictures, output=tmp_path / "out", form="yolo"
        )
    )
    assert len(read_yolo(tmp_path / "out" / "data.yaml", tmp_path / "out", "train")["images"]) == 1


def test_an_original_that_is_named_as_a_result_is_kept(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(photo.read_bytes())  # a picture, whatever its name
    with pytest.raises(OutputError, match=r"a.json is one of the images, and would be overwritten"):
        list(predict_files(predictor, [tmp_path / "a.json"], output=tmp_path, form="labelme", overwrite=True))


# ---- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "task", "message"),
    [
        ("xml", "detection", "the format is 'xml'; expected one of json, coco, csv, parquet, yolo, labelme"),
        ("coco", "panoptic", "the format coco holds objects with boxes, and the results of the task panoptic are more"),
        ("csv", "semantic", "the format csv"),
        ("parquet", "tables", "the format parquet"),
        ("yolo", "tables", "the format yolo"),
        ("labelme", "tables", "the format labelme"),
    ],
)
def test_formats_that_cannot_hold_it_are_refused(form: str, task: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        result_file(form, task, [], LABELS)


def test_annotations_are_for_coco(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and the format is csv"):
        result_file("csv", "detection", [], LABELS, tmp_path / "a.json")


def test_parquet_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pyarrow is not installed; run: pip install 'detr-export\[parquet\]'"):
        result_file("parquet", "detection", [], LABELS)


@pytest.mark.parametrize("name", ["predictions.coco.json", "images.coco.json"])
def test_no_file_of_results_is_overwritten(name: str, predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(OutputError, match=f"{name} exists; add --overwrite"):
        list(predict_files(predictor, [photo], output=tmp_path, form="coco"))
    assert (tmp_path / name).read_text() == "old"
