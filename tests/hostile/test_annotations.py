"""Annotation files that lie about themselves: one error that names the file or the record, and the process lives."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
from detr_export.benchmarks.accuracy.panoptic_evaluator import PanopticEvaluator
from detr_export.runtimes import limits
from detr_export.runtimes.errors import AnnotationError, DetrError
from detr_export.runtimes.processing.annotations.coco_file import read_annotation_file, read_lists
from detr_export.runtimes.processing.annotations.panoptic import panoptic_path, prepare_panoptic, read_segment_ids
from detr_export.runtimes.results.coco_images import read_image_ids
from detr_export.runtimes.results.detections import Detections

WIDTH, HEIGHT = 12, 10
DOCUMENT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0,
         "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]]},
    ],
    "categories": [{"id": 1, "name": "cat"}],
}  # fmt: skip


def changed(name: str, /, **values: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document[name][0].update(values)
    return document


def score(document: dict[str, Any]) -> Any:
    evaluator = CocoEvaluator(document)
    masks = np.zeros((1, HEIGHT, WIDTH), dtype=bool)
    masks[:, 1:6, 1:6] = True
    found = Detections(
        np.array([0.9], np.float32), np.array([1]), np.array([[1, 1, 6, 6]], np.float32), ("cat",), (HEIGHT, WIDTH), masks
    )
    evaluator.update(1, found)
    return evaluator.compute()


def test_the_good_document_scores() -> None:
    scores = score(DOCUMENT)
    assert scores.bbox.metrics.AP == scores.segm.metrics.AP == pytest.approx(1)
    rle = {"size": [HEIGHT, WIDTH], "counts": [11, 5, 5, 5, 5, 5, 5, 5, 5, 5, 64]}
    assert pytest.approx(1) == score(changed("annotations", segmentation=rle)).segm.metrics.AP


HUGE = 2**63
FILES: list[tuple[bytes, str]] = [
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    (b"\x00" * 100, "is not JSON"),
    (b"[]", "is a list: expected a dict|is not a COCO"),
    (b"null", "is a NoneType: expected a dict|is not a COCO"),
    (b"3", "is a int: expected a dict|is not a COCO"),
    (b'"images"', "is a str: expected a dict|is not a COCO"),
    (b'{"images": NaN}', "is not JSON"),
    (b'{"images": 1' + b"0" * 6000 + b"}", "is not JSON"),
    (b"[" * 100_000, "is nested too deeply|is not JSON"),
    (b'{"a":' * 100_000, "is nested too deeply|is not JSON"),
    (b'{"images": {}, "annotations": [], "categories": []}', "images is a dict: expected a list"),
    (b'{"images": [], "annotations": "x", "categories": []}', "annotations is a str: expected a list"),
    (b'{"images": [], "annotations": [], "categories": null}', "categories is a NoneType: expected a list"),
    (b'{"images": [], "annotations": []}', "no categories"),
    (b'{"images": ["\\ud800"]}', "is not JSON"),
    (b"\x89PNG\r\n\x1a\n", "is not JSON"),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=range(len(FILES)))
def test_a_file_that_is_none_of_cocos(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    for read in (read_annotation_file, lambda path: read_lists(path, "instances")):
        with pytest.raises(AnnotationError, match=message) as raised:
            read(file)
        assert str(file) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 500


def test_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnnotationError, match="does not exist: expected a COCO annotation file"):
        read_annotation_file(tmp_path / "a.json")
    with pytest.raises(AnnotationError, match=r"is not a regular file|cannot read"):
        read_annotation_file(tmp_path)
    with pytest.raises(AnnotationError, match="cannot read"):
        read_annotation_file("a\0.json")
    (tmp_path / "large.json").write_bytes(b" " * 100)
    monkeypatch.setattr(limits, "_current", limits.Limits(annotation_bytes=99))
    with pytest.raises(AnnotationError, match=r"large\.json in bytes is 100; expected at most 99; .*annotation_bytes=N"):
        read_annotation_file(tmp_path / "large.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(AnnotationError, match=r"a\.json is not a regular file"):
        read_annotation_file(tmp_path / "a.json")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"image 1: cannot read .*a\.png is not a regular file"):
        read_segment_ids(tmp_path / "a.png", (4, 4), "image 1")


INTEGERS = [True, 1.5, 1.0, "1", None, [1], {}, HUGE, -HUGE - 1, 10**30, float("nan")]
FIELDS: list[tuple[dict[str, Any], str]] = [
    *((changed("images", id=value), r"images, images\[0\]: id is|images\[0\]: id is") for value in INTEGERS),
    *((changed("annotations", image_id=value), r"annotations\[0\]: image_id is") for value in INTEGERS),
    *((changed("annotations", category_id=value), r"annotations\[0\]: category_id is") for value in INTEGERS),
    *((changed("categories", id=value), r"categories\[0\]: id is") for value in INTEGERS),
    *((changed("images", width=value), "image 1: width is") for value in [*INTEGERS, 0, -1]),
    *((changed("images", height=value), "image 1: height is") for value in [*INTEGERS, 0, -1]),
    *((changed("annotations", iscrowd=value), "iscrowd is") for value in (2, -1, 0.5, "0", None, [])),
    *((changed("annotations", area=value), "area is") for value in (-1, True, "9", None, 1e39, float("nan"), [])),
    *(
        (changed("annotations", bbox=value), r"annotations\[0\]: bbox is .*: expected four finite numbers")
        for value in (
            "1234", [], [1, 2, 3], [1, 2, 3, 4, 5], {"0": 1, "1": 2, "2": 3, "3": 4}, [1, 2, 3, "4"], [True, 1, 2, 3], None,
            [1, 2, 3, float("nan")], [1, 2, float("inf"), 4], [1, 2, 3, 1e300], [1, 2, 3, 10**400], [[1], [2], [3], [4]],
        )
    ),
    *((changed("categories", name=value), r"categories\[0\]: name is") for value in (None, 5, [], True)),
    (changed("images", width=10**5, height=10**5), r"image 1: height \* width is 10000000000; expected at most 89478485"),
    (changed("images", width=2**62, height=2**62), r"image 1: height \* width is more than 10\^18"),
    (changed("annotations", segments_info=[]), "this is a panoptic file"),
    ({**DOCUMENT, "images": DOCUMENT["images"] * 2}, r"images\[0\] and images\[1\] both have id 1"),
    ({**DOCUMENT, "annotations": DOCUMENT["annotations"] * 2}, "both have id 1"),
    ({**DOCUMENT, "categories": DOCUMENT["categories"] * 2}, "both have id 1"),
    ({**DOCUMENT, "images": [3]}, r"images\[0\] is a int: expected a dict"),
    ({**DOCUMENT, "annotations": [None]}, r"annotations\[0\] is a NoneType: expected a dict"),
    ({**DOCUMENT, "annotations": [[]]}, r"annotations\[0\] is a list: expected a dict"),
]  # fmt: skip
# An id of null is no id at all, which only the readers of that id refuse.


@pytest.mark.parametrize(("document", "message"), FIELDS, ids=range(len(FIELDS)))
def test_a_field_of_the_wrong_type_or_range(document: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as raised:
        score(document)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


SEGMENTATIONS: list[tuple[Any, str]] = [
    ({"size": [HEIGHT, WIDTH], "counts": [10**6]}, "add up to 1000000, expected 10x12"),
    ({"size": [HEIGHT, WIDTH], "counts": [0, 2**31, 2**31, 120]}, "add up to"),
    ({"size": [HEIGHT, WIDTH], "counts": "oooooo?" * 9}, "add up to|has a count of"),
    ({"size": [HEIGHT, WIDTH], "counts": "PPPP"}, "stop inside a number"),
    ({"size": [10**5, 10**5], "counts": [10**10]}, r"has size \[100000, 100000\]: expected \[height, width\] = \[10, 12\]"),
    ({"size": [WIDTH, HEIGHT], "counts": [120]}, r"has size \[12, 10\]: expected"),
    ({"size": [3 * 10**5] * 2, "counts": [9 * 10**10]}, r"has size \[300000, 300000\]: expected"),
    ([[0, 0, 9e4, 0, 0, 9e4] * 4000], "x is 90000: expected -1000 to 1012"),
    ([[1, 1, 2]], "has 3 numbers"),
    ([7], r"segmentation\[0\] is 7"),
    ("text", "segmentation is 'text'"),
    (True, "segmentation is True"),
]


@pytest.mark.parametrize(("value", "message"), SEGMENTATIONS, ids=range(len(SEGMENTATIONS)))
def test_a_mask_never_reaches_pycocotools_unchecked(value: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as raised:
        score(changed("annotations", segmentation=value))
    assert "annotations[0] of image 1: segmentation" in str(raised.value)


SCORE = """
import json, sys
from tests.hostile.test_annotations import score, changed
from detr_export.runtimes.errors import AnnotationError
for counts in json.load(sys.stdin):
    try:
        score(changed("annotations", segmentation={"size": [10, 12], "counts": counts}))
    except AnnotationError as error:
        print(error)
"""


def test_the_process_lives() -> None:
    """Each of these ends pycocotools' process, or takes its memory."""
    hostile: list[Any] = [[10**6] * 9, [0, *[2**31 - 1] * 50], "oooo0" * 40, "l" * 7, [0, 10**9], [1] * 242, "1" * 300]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCORE], input=json.dumps(hostile), capture_output=True, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": root}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(hostile)


def test_evaluate_ends_with_1(segmenter_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself, in this process: a crash would end the tests."""
    from detr_export.cli import app  # the command line

    Image.new("RGB", (WIDTH * 8, HEIGHT * 8)).save(tmp_path / "a.png")
    document = changed("images", width=WIDTH * 8, height=HEIGHT * 8)
    document["annotations"][0]["segmentation"] = {"size": [HEIGHT * 8, WIDTH * 8], "counts": [10**9]}
    document["categories"][0]["name"] = "person"
    (tmp_path / "a.json").write_text(json.dumps(document))
    arguments = ["evaluate", str(segmenter_onnx), "--images", str(tmp_path), "--annotations", str(tmp_path / "a.json")]
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: annotations[0] of image 1: segmentation: counts of the run-length encoding add up to")
    assert error.count("\n") == 1


# ---- panoptic ------------------------------------------------------------------------------------------------------------

RECORD: dict[str, Any] = {
    "image_id": 1, "file_name": "a.png",
    "segments_info": [{"id": 5, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": [0, 0, 4, 4]}],
}  # fmt: skip


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4), (5, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (4, 4), 5).save(tmp_path / "grey.png")
    Image.new("RGB", (5, 4), (5, 0, 0)).save(tmp_path / "wide.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    (tmp_path / "no-end.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


NAMES: list[tuple[Any, str]] = [
    ("../a.png", r"file_name is '\.\./a\.png': expected the path of the panoptic PNG in its folder"),
    ("b/../../a.png", "in its folder"),
    ("..\\a.png", "in its folder"),
    ("/etc/passwd", "in its folder"),
    ("\\\\server\\a.png", "in its folder"),
    ("C:\\a.png", "in its folder"),
    ("..", "in its folder"),
    ("", "file_name is ''"),
    ("a\0.png", "it has a null byte"),
    (None, "file_name is None"),
    (5, "file_name is 5"),
    ([], r"file_name is \[\]"),
    ("gone.png", "does not exist: expected its panoptic PNG"),
    ("x" * 5000, "does not exist|cannot read"),
    ("grey.png", "has mode L: expected an RGB PNG"),
    ("wide.png", "is 5x4 pixels: expected the 4x4 of the image"),
    ("cut.png", "cannot read .*cut.png"),
    ("no-end.png", r"cannot read .*no-end.png .*lacks the end of the PNG"),
    ("text.png", "cannot read .*text.png"),
    ("empty.png", "cannot read .*is empty"),
    ("folder.png", "cannot read .*is a directory"),
]


@pytest.mark.parametrize(("name", "message"), NAMES, ids=range(len(NAMES)))
def test_a_panoptic_png(name: Any, message: str, masks: Path) -> None:
    with pytest.raises(AnnotationError, match=message) as raised:
        prepare_panoptic({**RECORD, "file_name": name}, (4, 4), True, masks)
    assert str(raised.value).startswith("image 1: ")
    assert prepare_panoptic(RECORD, (4, 4), True, masks)["masks"].all()


@pytest.mark.parametrize("name", ["a.png", "b/a.png", "./a.png", "a..png", "..a/b.png", "b/..a.png"])
def test_names_inside_a_folder(name: str, tmp_path: Path) -> None:
    assert panoptic_path({"file_name": name}, "it", tmp_path) == tmp_path / name


def test_the_masks_of_an_image_have_a_limit(masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_current", limits.Limits(batch_pixels=15))
    with pytest.raises(AnnotationError, match=r"image 1: pixels of .* is 16; expected at most 15"):
        prepare_panoptic(RECORD, (4, 4), True, masks)


PANOPTIC = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [RECORD],
    "categories": [{"id": 1, "name": "cat", "isthing": 1}],
}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"segments_info": None}, r"annotations\[0\]: segments_info is a NoneType"),
        ({"segments_info": {}}, "segments_info is a dict"),
        ({"segments_info": [3]}, r"segments_info\[0\] is a int"),
        ({"segments_info": RECORD["segments_info"] * 2}, "both have id 5"),
        *(({"image_id": value}, r"annotations\[0\]: image_id is") for value in INTEGERS),
    ],
)
def test_a_panoptic_record(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=message):
        PanopticEvaluator({**PANOPTIC, "annotations": [{**RECORD, **record}]}, tmp_path)


@pytest.mark.parametrize("value", [None, 5, [], "", "a\0b"])
def test_names_of_pictures_are_text(value: Any) -> None:
    with pytest.raises(AnnotationError, match="image 1: file_name is"):
        read_image_ids(changed("images", file_name=value), ["a.png"], {1: "cat"})


def test_evaluate_reads_no_picture_outside_of_the_folder(tiny_onnx: Path, tmp_path: Path) -> None:
    from detr_export.benchmarks.accuracy.evaluation import evaluate

    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    (tmp_path / "pictures").mkdir()
    for name in ("../a.png", str(tmp_path / "a.png")):
        document = changed("images", file_name=name)
        document["categories"][0]["name"] = "person"
        (tmp_path / "a.json").write_text(json.dumps(document))
        with pytest.raises(DetrError, match=r"image 1: file_name is .*: expected the path of a picture in its folder"):
            evaluate(tiny_onnx, tmp_path / "pictures", tmp_path / "a.json")
