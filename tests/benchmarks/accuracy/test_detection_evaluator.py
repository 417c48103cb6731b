"""Box and mask AP: cases whose answer is known, and random ones against pycocotools used directly."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator, TypeScores
from detr_export.runtimes import AnnotationError, Detections, InputError
from detr_export.runtimes.processing.annotations.coco_file import check_categories
from detr_export.runtimes.processing.rle import encode_rle

SIZE = (120, 160)
CATEGORIES = {1: "cat", 3: "dog"}

Box = tuple[float, float, float, float]  # x, y, width, height


def filled(box: Box, size: tuple[int, int] = SIZE) -> np.ndarray:
    x, y, width, height = (round(value) for value in box)
    mask = np.zeros(size, dtype=bool)
    mask[max(y, 0) : y + height, max(x, 0) : x + width] = True
    return mask


def annotation(image_id: int, box: Box, category: int = 1, **more: Any) -> dict[str, Any]:
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": 0,
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        "area": float(width * height),
        "iscrowd": 0,
        "segmentation": [polygon],
        **more,
    }


def document(*annotations: dict[str, Any], images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": index, "height": SIZE[0], "width": SIZE[1]} for index in range(1, images + 1)],
        "annotations": [{**item, "id": index} for index, item in enumerate(annotations)],  # from 0
        "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
    }


def detections(*found: tuple[float, int, Box], masks: bool = True) -> Detections:
    boxes = np.array([[x, y, x + w, y + h] for _, _, (x, y, w, h) in found], dtype=np.float32).reshape(-1, 4)
    return Detections(
        np.array([score for score, _, _ in found], dtype=np.float32),
        np.array([label for _, label, _ in found], dtype=np.int64),
        boxes,
        tuple(str(label) for _, label, _ in found),
        SIZE,
        np.array([filled(box) for _, _, box in found], dtype=bool).reshape(-1, *SIZE) if masks else None,
    )


def ap(truth: dict[str, Any], *found: Detections) -> float | None:
    """AP of boxes, which has to be that of masks too: all masks here fill their boxes."""
    evaluator = CocoEvaluator(truth)
    for image_id, item in enumerate(found, start=1):
        evaluator.update(image_id, item)
    scores = evaluator.compute()
    assert scores.bbox is not None
    assert scores.segm is not None
    assert scores.bbox.metrics.AP == scores.segm.metrics.AP
    assert scores.images == len(found)
    return scores.bbox.metrics.AP


A, B = (10.0, 10.0, 40.0, 50.0), (90.0, 20.0, 50.0, 40.0)  # both are of medium size
HALF = 51 / 101  # AP when everything right is half of what there is: 51 of 101 recall levels are reached


def test_perfect() -> None:
    evaluator = CocoEvaluator(document(annotation(1, A), annotation(1, B, 3), images=2))
    evaluator.update(1, detections((0.9, 1, A), (0.4, 3, B)))
    evaluator.update(2, detections())
    scores = evaluator.compute()
    for part in (scores.bbox, scores.segm):
        assert part is not None
        metrics = part.metrics
        for name in ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"):
            assert getattr(metrics, name) == pytest.approx(1), name
        assert metrics.APs is metrics.APl is metrics.ARs is metrics.ARl is None
        assert part.per_class == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    json.dumps(asdict(scores), allow_nan=False)


def test_images_without_detections_count_and_images_that_never_came_do_not() -> None:
    truth = document(annotation(1, A), annotation(2, A), images=2)
    assert ap(truth, detections((0.9, 1, A)), detections()) == pytest.approx(HALF)
    assert ap(truth, detections((0.9, 1, A))) == pytest.approx(1)
    assert ap(truth, detections(), detections()) == 0


def test_nothing_to_find() -> None:
    assert ap(document(images=1), detections((0.9, 1, A))) is None
    empty = CocoEvaluator(document(annotation(1, A)), ("bbox",)).compute()
    assert empty.bbox is not None
    assert (empty.bbox.metrics.AP, empty.segm, empty.images) == (None, None, 0)


def test_duplicates_are_wrong() -> None:
    truth = document(annotation(1, A), annotation(1, B))
    twice = detections((0.9, 1, A), (0.8, 1, A), (0.7, 1, B))
    # The second A stands before B: precision is 1 up to half of the recall, and 2/3 after it.
    assert ap(truth, twice) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_crowds_are_ignored() -> None:
    crowd = {"size": list(SIZE), "counts": encode_rle(filled(B))["counts"]}
    inside = (100.0, 25.0, 20.0, 20.0)
    found = detections((0.9, 1, inside), (0.5, 1, A))
    assert ap(document(annotation(1, A), annotation(1, B, iscrowd=1, segmentation=crowd)), found) == pytest.approx(1)
    assert ap(document(annotation(1, A)), found) == pytest.approx(0.5)


def test_classes() -> None:
    truth = document(annotation(1, A), annotation(1, B, 3))
    assert ap(truth, detections((0.9, 3, A), (0.9, 1, B))) == 0
    assert ap(truth, detections((0.9, 1, A), (0.9, 1, B))) == pytest.approx(0.5)  # one class found, one not
    stuff = detections((0.99, 2, A), (0.9, 1, A), (0.99, 77, B), (0.9, 3, B))
    assert ap(truth, stuff) == pytest.approx(1)  # labels without a category are left out


def test_masks_decide_what_a_small_mask_is() -> None:
    """The box is of medium size, the mask in it is small."""
    small = np.zeros(SIZE, dtype=bool)
    small[10:60, 10] = small[10, 10:50] = True
    truth = document(annotation(1, A, area=float(small.sum()), segmentation=encode_rle(small)))
    evaluator = CocoEvaluator(truth)
    found = detections((0.9, 1, A), (0.95, 1, B))
    assert found.masks is not None
    found.masks[0] = small
    evaluator.update(1, found)
    scores = evaluator.compute()
    assert scores.segm is not None
    assert (scores.segm.metrics.AP, scores.segm.metrics.APs) == (pytest.approx(0.5), pytest.approx(1))


# ---- against pycocotools ------------------------------------------------------------------------------------------------


def random_case(seed: int) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Objects of all sizes, crowds, three classes of which one has no annotation, detections near and far."""
    random = np.random.default_rng(seed)
    size = (200, 240)
    truth = document(images=5)
    truth["categories"].append({"id": 8, "name": "bird"})
    found = {}
    for image in truth["images"]:
        image |= {"height": size[0], "width": size[1]}
        rows = []
        for _ in range(random.integers(0, 7)):
            box = (*random.uniform(0, 90, 2).tolist(), *random.uniform(8, 110, 2).tolist())
            item = annotation(image["id"], box, int(random.choice([1, 3])), id=len(truth["annotations"]) + 1)
            mask = filled(box, size) & (random.random(size) < 0.95)
            if random.random() < 0.5:
                item |= {"segmentation": encode_rle(mask), "area": float(mask.sum())}
                item["iscrowd"] = int(random.random() < 0.3)
            truth["annotations"].append(item)
            rows += [
                (random.random(), int(random.choice([1, 3, 8, 9], p=[0.45, 0.45, 0.05, 0.05])), box + random.normal(0, 4, 4))
                for _ in range(random.integers(0, 4))
            ]
        masks = np.array([filled(tuple(row[2]), size) & (random.random(size) < 0.9) for row in rows], dtype=bool)
        corners = np.array([[x, y, x + w, y + h] for _, _, (x, y, w, h) in rows], dtype=np.float32).reshape(-1, 4)
        found[image["id"]] = Detections(
            np.array([row[0] for row in rows], dtype=np.float32),
            np.array([row[1] for row in rows], dtype=np.int64),
            corners,
            ("",) * len(rows),
            size,
            masks.reshape(-1, *size),
        )
    return truth, found


def direct(truth: dict[str, Any], found: dict[int, Detections], iou_type: str, directory: Path) -> COCOeval:
    """pycocotools as its own demo uses it: two files, nothing of ours but the arrays."""
    (directory / "truth.json").write_text(json.dumps(truth))
    results = []
    for image_id, item in found.items():
        assert item.masks is not None
        for index in range(len(item)):
            x_min, y_min, x_max, y_max = item.boxes[index].astype(float).tolist()
            entry = {"image_id": image_id, "category_id": int(item.labels[index]), "score": float(item.scores[index])}
            if iou_type == "bbox":
                entry["bbox"] = [x_min, y_min, x_max - x_min, y_max - y_min]
            else:
                rle = coco_mask.encode(np.asfortranarray(item.masks[index].astype(np.uint8)))
                entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            results.append(entry)
    (directory / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(directory / "truth.json"))
        scoring = COCOeval(coco, coco.loadRes(str(directory / "results.json")), iou_type)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return scoring


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("seed", range(8))
def test_same_scores_as_pycocotools(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = random_case(seed)
    before = copy.deepcopy(truth)
    evaluator = CocoEvaluator(truth)
    for image_id, item in reversed(found.items()):  # in any order
        evaluator.update(image_id, item)
    given = evaluator.compute()
    assert given == evaluator.compute()
    assert truth == before
    assert capsys.readouterr().out == ""
    for iou_type in ("bbox", "segm"):
        expected = direct(truth, found, iou_type, tmp_path)
        part = getattr(given, iou_type)
        assert isinstance(part, TypeScores)
        stats = [None if value == -1 else pytest.approx(value, abs=1e-6) for value in expected.stats]
        assert list(vars(part.metrics).values()) == stats
        assert 0 < expected.stats[0] < 1
        for index, name in enumerate(("cat", "dog", "bird")):
            values = expected.eval["precision"][:, :, index, 0, 2]
            assert part.per_class[name] == (pytest.approx(values.mean(), abs=1e-6) if values.min() > -1 else None)


def test_every_kind_of_source(tmp_path: Path) -> None:
    truth, found = random_case(1)
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(file))
    results = []
    for source in (truth, file, str(file), loaded):
        evaluator = CocoEvaluator(source, ("bbox",))
        for image_id, item in found.items():
            evaluator.update(image_id, item)
        results.append(evaluator.compute())
    assert results[0].bbox is not None
    assert results[0].segm is None
    assert results == results[:1] * 4


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_refuses_images() -> None:
    evaluator = CocoEvaluator(document(annotation(1, A)))
    with pytest.raises(InputError, match="image 7 is not among the 1 images"):
        evaluator.update(7, detections())
    with pytest.raises(InputError, match="image 1 have no masks; leave segm out"):
        evaluator.update(1, detections((0.9, 1, A), masks=False))
    with pytest.raises(InputError, match="image 1 is 160x120 in the annotations and 120x160 in the prediction"):
        evaluator.update(1, Detections(*list(vars(detections()).values())[:4], (160, 120)))
    evaluator.update(1, detections())
    with pytest.raises(InputError, match="image 1 was given before"):
        evaluator.update(1, detections())
    with pytest.raises(InputError, match=r"iou_types are \('box',\); expected some of bbox, segm"):
        CocoEvaluator(document(), ("box",))


@pytest.mark.parametrize("nothing", [None, [], "absent"], ids=str)
def test_annotations_without_masks_have_no_mask_ap(nothing: Any) -> None:
    item = annotation(1, A, segmentation=nothing)
    if nothing == "absent":
        del item["segmentation"]
    evaluator = CocoEvaluator(document(item))
    assert evaluator.iou_types == ("bbox",)
    evaluator.update(1, detections((0.9, 1, A)))
    scores = evaluator.compute()
    assert scores.segm is None
    assert scores.bbox is not None
    assert vars(scores.bbox.metrics)["AP"] == pytest.approx(1)
    with pytest.raises(AnnotationError, match=r"annotations\[1\] has no segmentation, which others have"):
        CocoEvaluator(document(annotation(1, B), item))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"annotations\[0\]: bbox is \[1, 2, 3\]: expected four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "expected four finite numbers"),
        ({"bbox": None}, "expected four finite numbers"),
        ({"area": "big"}, "area is 'big'"),
        ({"area": None}, "area is None"),
        ({"category_id": "1"}, "category_id is '1'"),
        ({"image_id": None}, "image_id is None"),
        ({"iscrowd": 2}, "iscrowd is 2"),
        ({"segments_info": []}, "this is a panoptic file"),
    ],
)
def test_refuses_annotations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        CocoEvaluator(document({**annotation(1, A), **change}))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("x", "segmentation is 'x': expected polygons"),
        ([[1, 2, 3, 4]], r"annotations\[0\] of image 1: segmentation\[0\] has 4 numbers"),
        ({"size": [2, 2], "counts": [4]}, r"has size \[2, 2\]: expected \[height, width\] = \[120, 160\]"),
        ({"size": list(SIZE), "counts": [4]}, "counts of the run-length encoding add up to 4"),
        ({"size": list(SIZE), "counts": "\x7f"}, "compressed run-length counts have byte 127"),
        ({"counts": "0"}, "expected size and counts"),
    ],
)
def test_refuses_segmentations(segmentation: Any, message: str) -> None:
    evaluator = CocoEvaluator(document(annotation(1, A, segmentation=segmentation)))
    evaluator.update(1, detections())
    with pytest.raises(AnnotationError, match=message):
        evaluator.compute()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is a list: expected a dict"),
        ("{}", "no images; expected that key"),
        ('{"images": [], "annotations": {}, "categories": []}', "annotations is a dict: expected a list"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}', "both have id 1"),
        ('{"images": [{}], "annotations": [], "categories": []}', r"images\[0\]: no id"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\]: no name"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": 2}]}', "name is 2: expected text"),
    ],
)
def test_refuses_files(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(AnnotationError, match=message) as caught:
        CocoEvaluator(file)
    assert "\n" not in str(caught.value)


def test_refuses_paths(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a.json does not exist: expected a COCO annotation file"):
        CocoEvaluator(tmp_path / "a.json")
    with pytest.raises(AnnotationError, match=r"cannot read .*: Is a directory"):
        CocoEvaluator(tmp_path)


# ---- categories ---------------------------------------------------------------------------------------------------------

MODEL = {0: "N/A", 1: "Person ", 2: "LABEL_2", 3: "car", 4: "n/a"}


@pytest.mark.parametrize(
    "categories", [{1: "person"}, {1: "PERSON", 3: "car"}, {2: "anything"}, {3: "car", 2: "bicycle"}], ids=str
)
def test_categories_that_agree(categories: dict[int, str]) -> None:
    assert check_categories(MODEL, categories) == ()


@pytest.mark.parametrize("lacking", [{4: "cat"}, {7: "cat"}, {0: "person"}], ids=str)
def test_categories_that_the_model_lacks(lacking: dict[int, str]) -> None:
    (note,) = check_categories(MODEL, {1: "person", **lacking})
    assert "the model lacks 1 of 2 categories" in note
    (name,) = lacking.values()
    assert repr(name) in note
    with pytest.raises(AnnotationError, match="the model has none of the annotations' 1 categories"):
        check_categories(MODEL, lacking)


def test_categories_that_contradict() -> None:
    with pytest.raises(AnnotationError, match=r"1 of 2 categories .*: 3 is 'cat' in the annotations and 'car' in the model"):
        check_categories(MODEL, {1: "person", 3: "cat"})
    with pytest.raises(AnnotationError, match="categories: there are none"):
        check_categories(MODEL, {})
