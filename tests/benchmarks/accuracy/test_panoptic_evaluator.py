"""Panoptic quality: cases whose answer is known, and random ones against the definition, written out slowly."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.benchmarks.accuracy.panoptic_evaluator import PanopticEvaluator
from detr_export.runtimes import AnnotationError, InputError, Segment, Segmentation
from detr_export.runtimes.processing.annotations.panoptic import id_to_rgb
from detr_export.runtimes.results.segmentation import make_segmentation

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 4, "name": "dog", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
    {"id": 9, "name": "sea", "isthing": 0},
]
EMPTY = {"images": [], "annotations": [], "categories": CATEGORIES}

Segments = list[dict[str, Any]]


def segment(id_: int, category: int, crowd: int = 0) -> dict[str, Any]:
    return {"id": id_, "category_id": category, "iscrowd": crowd}


def evaluator() -> PanopticEvaluator:
    return PanopticEvaluator(EMPTY, ".")


def counts(given: PanopticEvaluator) -> dict[str, tuple[int, int, int]]:
    """(tp, fp, fn) of the classes that occur."""
    rows = {row.name: (row.tp, row.fp, row.fn) for row in given.compute().per_class}
    return {name: row for name, row in rows.items() if any(row)}


def score(gt: list, gt_segments: Segments, pred: list, pred_segments: Segments) -> PanopticEvaluator:
    given = evaluator()
    given.add(np.array(gt), gt_segments, np.array(pred), pred_segments)
    return given


# ---- known answers ------------------------------------------------------------------------------------------------------


def test_perfect() -> None:
    ids = [[1, 1, 2], [1, 300, 70000]]
    segments = [segment(1, 1), segment(2, 1), segment(300, 7), segment(70000, 4)]
    scores = score(ids, segments, ids, segments).compute()
    for part, classes in ((scores.all, 3), (scores.things, 2), (scores.stuff, 1)):
        assert (part.pq, part.sq, part.rq, part.classes) == (1, 1, 1, classes)
    sea = scores.per_class[3]
    assert (sea.name, sea.isthing, sea.pq, sea.sq, sea.rq, sea.tp, sea.fp, sea.fn) == (
        "sea",
        False,
        None,
        None,
        None,
        0,
        0,
        0,
    )
    assert scores.images == 1
    json.dumps(asdict(scores), allow_nan=False)


def test_ids_need_not_agree() -> None:
    given = score([[1, 1, 2, 2]], [segment(1, 1), segment(2, 7)], [[5, 5, 1, 1]], [segment(5, 1), segment(1, 7)])
    assert given.compute().all.pq == 1


def test_nothing_at_all() -> None:
    scores = evaluator().compute()
    assert (scores.all.pq, scores.things.pq, scores.all.classes, scores.images) == (None, None, 0, 0)


def test_nothing_found() -> None:
    given = score([[1, 1, 2]], [segment(1, 1), segment(2, 7)], [[0, 0, 0]], [])
    assert counts(given) == {"cat": (0, 0, 1), "sky": (0, 0, 1)}
    scores = given.compute()
    assert (scores.all.pq, scores.all.sq, scores.all.rq, scores.all.classes) == (0, 0, 0, 2)


def test_the_numbers_of_a_class() -> None:
    """Cats: one matched with IoU 3/4, one missed, one too many. Sky: matched with IoU 4/5, of which the dog has the rest."""
    gt = [[1, 1, 1, 1, 2, 3, 3, 3, 3, 3]]
    pred = [[1, 1, 1, 0, 0, 4, 3, 3, 3, 3]]
    given = score(gt, [segment(1, 1), segment(2, 1), segment(3, 7)], pred, [segment(1, 1), segment(4, 1), segment(3, 7)])
    assert counts(given) == {"cat": (1, 1, 1), "sky": (1, 0, 0)}
    cat, _, sky, _ = given.compute().per_class
    assert (cat.pq, cat.sq, cat.rq) == (0.75 / 2, 0.75, 0.5)
    assert (sky.pq, sky.sq, sky.rq) == (0.8, 0.8, 1)
    assert given.compute().all.pq == pytest.approx((0.375 + 0.8) / 2)
    assert given.compute().things.pq == 0.375


def test_half_is_no_match() -> None:
    assert counts(score([[1, 1]], [segment(1, 1)], [[1, 0]], [segment(1, 1)])) == {"cat": (0, 1, 1)}
    assert counts(score([[1, 1, 1]], [segment(1, 1)], [[1, 1, 0]], [segment(1, 1)])) == {"cat": (1, 0, 0)}


def test_another_class_is_no_match() -> None:
    assert counts(score([[1]], [segment(1, 1)], [[1]], [segment(1, 4)])) == {"cat": (0, 0, 1), "dog": (0, 1, 0)}


def test_void_counts_for_nobody() -> None:
    gt, pred = [[1, 1, 0, 0]], [[1, 1, 1, 0]]
    assert score(gt, [segment(1, 1)], pred, [segment(1, 1)]).compute().all.sq == 1  # the pixel on VOID is not in the union
    assert counts(score([[0, 0, 1]], [segment(1, 7)], [[1, 1, 1]], [segment(1, 1)])) == {"sky": (0, 0, 1)}  # 2/3 on VOID
    assert counts(score([[0, 1]], [segment(1, 7)], [[1, 1]], [segment(1, 1)])) == {"cat": (0, 1, 0), "sky": (0, 0, 1)}  # 1/2


def test_pixels_that_no_segment_lists_are_not_void() -> None:
    """An id in the PNG that the file does not list: panopticapi neither excuses nor counts it."""
    given = score([[8, 8, 1]], [segment(1, 7)], [[2, 2, 1]], [segment(2, 1), segment(1, 7)])
    assert counts(given) == {"cat": (0, 1, 0), "sky": (1, 0, 0)}


def test_crowds_are_neither_found_nor_missed() -> None:
    gt = [[1, 1, 1, 2]]
    segments = [segment(1, 1, crowd=1), segment(2, 7)]
    assert counts(score(gt, segments, [[0, 0, 0, 0]], [])) == {"sky": (0, 0, 1)}
    assert counts(score(gt, segments, [[5, 5, 5, 2]], [segment(5, 1), segment(2, 7)])) == {"sky": (1, 0, 0)}
    other = score(gt, segments, [[5, 5, 5, 2]], [segment(5, 4), segment(2, 7)])  # a crowd of cats excuses no dog
    assert counts(other) == {"dog": (0, 1, 0), "sky": (1, 0, 0)}


def test_void_and_crowd_add_up() -> None:
    gt = [[1, 0, 2, 2, 2]]
    segments = [segment(1, 1, crowd=1), segment(2, 7)]
    assert counts(score(gt, segments, [[5, 5, 5, 2, 2]], [segment(5, 1), segment(2, 7)])) == {"sky": (1, 0, 0)}
    assert counts(score(gt, segments, [[5, 5, 5, 5, 2]], [segment(5, 1), segment(2, 7)])) == {
        "cat": (0, 1, 0),
        "sky": (0, 1, 1),
    }


def test_predictions_of_unknown_classes_are_left_out() -> None:
    given = score([[1, 1, 1, 0]], [segment(1, 1)], [[1, 1, 2, 2]], [segment(1, 1), segment(2, 5)])
    assert counts(given) == {"cat": (1, 0, 0)}
    assert given.compute().all.sq == pytest.approx(2 / 3)


# ---- against the definition ---------------------------------------------------------------------------------------------


def slow(cases: list[tuple[np.ndarray, Segments, np.ndarray, Segments]]) -> dict[int, tuple[Fraction, int, int, int]]:
    """(sum of IoUs, tp, fp, fn) by category: section 4 of the paper, pixel sets and fractions, pair by pair."""
    found = {item["id"]: [Fraction(0), 0, 0, 0] for item in CATEGORIES}
    for gt, gt_segments, pred, pred_segments in cases:
        pixels = [(y, x) for y in range(gt.shape[0]) for x in range(gt.shape[1])]
        truth = {item["id"]: {at for at in pixels if gt[at] == item["id"]} for item in gt_segments}
        guess = {item["id"]: {at for at in pixels if pred[at] == item["id"]} for item in pred_segments}
        void = {at for at in pixels if gt[at] == 0}
        matched_truth, matched_guess = set(), set()
        for theirs in gt_segments:
            for mine in pred_segments:
                if theirs["iscrowd"] or theirs["category_id"] != mine["category_id"]:
                    continue
                p, g = guess[mine["id"]] - void, truth[theirs["id"]]
                if p | g and Fraction(len(p & g), len(p | g)) > Fraction(1, 2):
                    found[mine["category_id"]][0] += Fraction(len(p & g), len(p | g))
                    found[mine["category_id"]][1] += 1
                    matched_truth.add(theirs["id"])
                    matched_guess.add(mine["id"])
        for mine in pred_segments:
            crowds = [g["id"] for g in gt_segments if g["iscrowd"] and g["category_id"] == mine["category_id"]]
            excused = void | (truth[crowds[-1]] if crowds else set())  # the last one: panopticapi knows one crowd a class
            p = guess[mine["id"]]
            if mine["id"] not in matched_guess and Fraction(len(p & excused), len(p)) <= Fraction(1, 2):
                found[mine["category_id"]][2] += 1
        for theirs in gt_segments:
            if not theirs["iscrowd"] and theirs["id"] not in matched_truth:
                found[theirs["category_id"]][3] += 1
    return {category: tuple(row) for category, row in found.items()}  # type: ignore[misc]


def random_case(random: np.random.Generator) -> tuple[np.ndarray, Segments, np.ndarray, Segments]:
    """Blocks of segments with crowds and VOID, and a prediction of them with noise, other classes and more VOID."""
    size = (int(random.integers(3, 15)), int(random.integers(3, 15)))
    categories = [item["id"] for item in CATEGORIES]
    coarse = random.integers(0, 8, (4, 4))
    gt = np.kron(coarse, np.ones((4, 4), dtype=np.int64))[: size[0], : size[1]]
    names = np.concatenate([[0], random.choice(2**24 - 1, 9, replace=False) + 1])
    listed = np.unique(gt[gt > 0])
    gt_segments = [segment(int(names[i]), int(random.choice(categories)), int(random.random() < 0.3)) for i in listed]
    if random.random() < 0.3:
        gt_segments.append(segment(int(names[9]), 1))  # in the list and not in the PNG
    pred = np.where(random.random(size) < random.choice([0.05, 0.3]), random.integers(0, 8, size), gt)
    pred[gt == 0] = random.choice([0, 1, 2], (gt == 0).sum())
    pred[random.random(size) < 0.1] = 0
    of_gt = dict(zip(listed.tolist(), (item["category_id"] for item in gt_segments), strict=False))
    pred_segments = [
        segment(int(i), of_gt.get(int(i), 1) if random.random() < 0.8 else int(random.choice(categories)))
        for i in np.unique(pred[pred > 0])
    ]
    return names[gt], gt_segments, pred, pred_segments


@pytest.mark.parametrize("seed", range(40))
def test_same_as_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    cases = [random_case(random) for _ in range(4)]
    given = evaluator()
    for case in cases:
        given.add(*case)
    expected = slow(cases)
    scores = given.compute()
    qualities = []
    for row, item in zip(scores.per_class, CATEGORIES, strict=True):
        iou, tp, fp, fn = expected[item["id"]]
        assert (row.name, row.isthing, row.tp, row.fp, row.fn) == (item["name"], bool(item["isthing"]), tp, fp, fn)
        if tp + fp + fn == 0:
            assert row.pq is row.sq is row.rq is None
            continue
        quality = (float(iou / (tp + Fraction(fp + fn, 2))), float(iou / tp) if tp else 0.0, tp / (tp + (fp + fn) / 2))
        assert (row.pq, row.sq, row.rq) == pytest.approx(quality, abs=1e-12)
        qualities.append((item["isthing"], *quality))
    for part, kinds in ((scores.all, (0, 1)), (scores.things, (1,)), (scores.stuff, (0,))):
        of_part = [row[1:] for row in qualities if row[0] in kinds]
        assert part.classes == len(of_part)
        if of_part:
            assert (part.pq, part.sq, part.rq) == pytest.approx(tuple(np.mean(of_part, axis=0)), abs=1e-12)


def test_the_random_cases_have_all_kinds() -> None:
    """Or agreement above would prove little."""
    random = np.random.default_rng(0)
    cases = [random_case(random) for _ in range(40)]
    totals = np.array([row[1:] for row in slow(cases).values()]).sum(axis=0)
    assert (totals > 10).all()
    assert sum(item["iscrowd"] for _, segments, *_ in cases for item in segments) > 10
    crowdless = [(gt, [{**s, "iscrowd": 0} for s in segments], *rest) for gt, segments, *rest in cases]
    assert slow(crowdless) != slow(cases)


# ---- files --------------------------------------------------------------------------------------------------------------

GT = np.array([[1, 1, 70000], [0, 1, 70000]])
INFO = [segment(1, 1), segment(70000, 7)]


def segmentation(ids: np.ndarray = GT, labels: tuple[int, int] = (1, 7)) -> Segmentation:
    names = {item["id"]: item["name"] for item in CATEGORIES}
    info = [
        {"id": id_, "label_id": label, "score": 0.9, "was_fused": False}
        for id_, label in zip((1, 70000), labels, strict=True)
    ]
    return make_segmentation("panoptic", ids, info, names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("3.png", "4.png"):
        Image.fromarray(id_to_rgb(GT)).save(tmp_path / name)
    records = [{"image_id": id_, "file_name": f"{id_}.png", "segments_info": INFO} for id_ in (3, 4, 5)]
    document = {"images": [{"id": 3}, {"id": 4}, {"id": 5}], "annotations": records, "categories": CATEGORIES}
    (tmp_path / "panoptic.json").write_text(json.dumps(document))
    return tmp_path


def test_reads_pngs(folder: Path) -> None:
    given = PanopticEvaluator(folder / "panoptic.json", folder)
    given.require_images([3, 4])
    given.update(3, segmentation())
    given.update(4, segmentation(labels=(1, 9)))
    scores = given.compute()
    assert counts(given) == {"cat": (2, 0, 0), "sky": (1, 0, 1), "sea": (0, 1, 0)}
    assert scores.images == 2
    assert given.categories == {1: "cat", 4: "dog", 7: "sky", 9: "sea"}


def test_refuses_images(folder: Path) -> None:
    given = PanopticEvaluator(folder / "panoptic.json", folder)
    with pytest.raises(InputError, match="image 8 is not among the 3 images of the panoptic annotations"):
        given.update(8, segmentation())
    with pytest.raises(InputError, match="of kind semantic; expected panoptic"):
        given.update(3, Segmentation("semantic", GT, ()))
    with pytest.raises(AnnotationError, match=r"3.png is 3x2 pixels: expected the 2x2"):
        given.update(3, segmentation(GT[:, [0, 2]]))
    with pytest.raises(AnnotationError, match=r"5.png does not exist: expected its panoptic PNG"):
        given.update(5, segmentation())
    with pytest.raises(AnnotationError, match=r"5.png does not exist"):
        given.require_images([3, 5])
    with pytest.raises(InputError, match="image 9 is not among the 3"):
        given.require_images([9])
    given.update(3, segmentation())
    with pytest.raises(InputError, match="image 3 was given before"):
        given.update(3, segmentation())
    assert given.compute().images == 1


@pytest.mark.parametrize(
    ("pred", "segments", "message"),
    [
        ([[1, 1]], [segment(1, 1)], r"the maps are \(1, 1\) and \(1, 2\)"),
        ([[2]], [segment(1, 1)], "the ids in the predicted map are not those of its segments"),
        ([[1]], [segment(1, 1), segment(2, 1)], "are not those of its segments"),
        ([[-1]], [], "are not those of its segments"),
        ([[2**24]], [segment(2**24, 1)], "are not those of its segments"),
        ([[1]], [segment(1, 1), segment(1, 4)], "two segments have one id"),
        ([[0]], [segment(0, 1)], "two segments have one id, or one has 0, which is VOID"),
    ],
)
def test_refuses_predictions(pred: list, segments: Segments, message: str) -> None:
    given = evaluator()
    with pytest.raises(InputError, match=message):
        given.add(np.array([[1]]), [segment(1, 1)], np.array(pred), segments)
    assert given.compute().images == 0
    assert counts(given) == {}


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([segment(1, 5)], "a category_id that is not among the categories"),
        ([{"id": 1}], "no category_id"),
        ([segment(1, 1, crowd=3)], "iscrowd is 3"),
    ],
)
def test_refuses_segments(segments: Segments, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        evaluator().add(np.array([[1]]), segments, np.array([[0]]), [])


def test_refuses_files(tmp_path: Path) -> None:
    for document, message in (
        ({**EMPTY, "categories": [{"id": 1, "name": "cat"}]}, r"categories\[0\]: no isthing"),
        ({**EMPTY, "annotations": [{"image_id": 1, "bbox": []}]}, r"annotations\[0\]: no segments_info"),
        ({"images": []}, "no annotations"),
        ({**EMPTY, "annotations": [{"image_id": 1, "segments_info": []}] * 2}, r"annotations\[1\]: image 1 has one already"),
    ):
        with pytest.raises(AnnotationError, match=message):
            PanopticEvaluator(document, tmp_path)


def test_segments_of_a_predictor_have_their_pixels() -> None:
    """What `make_segmentation` leaves out would be an error in `add`."""
    given = segmentation(np.array([[1, 1], [1, 1]]))
    assert [type(item) for item in given.segments] == [Segment]
