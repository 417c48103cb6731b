"""Run-length encodings that lie about themselves, and valid ones, which must pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detr_export.runtimes import limits
from detr_export.runtimes.errors import AnnotationError
from detr_export.runtimes.processing.annotations import checks
from detr_export.runtimes.processing.annotations.detection import prepare_detection
from detr_export.runtimes.processing.rle import checked_counts, compress_counts, decode_rle, decompress_counts

SIZE = [3, 4]
TOO_MANY = 10**30

BAD: list[tuple[Any, Any, str]] = [
    # size, counts, what the message says
    (SIZE, [13], "add up to 13, expected 3x4 = 12"),
    (SIZE, [11], "add up to 11, expected 3x4 = 12"),
    (SIZE, [], "add up to 0, expected"),
    (SIZE, "", "add up to 0, expected"),
    (SIZE, [6, 2**62, 2**62, 2**62, 2**62, 6], "add up to 18446744073709551628, expected"),  # 12 modulo 2^64
    (SIZE, [2**32 + 12], "add up to 4294967308, expected"),  # 12 modulo 2^32
    (SIZE, [0, 2**31, 2**31, 12], "add up to 4294967308, expected"),
    (SIZE, [13, -1], "has a count of -1"),
    (SIZE, [-12, 24], "has a count of -12"),
    (SIZE, [2**63], r"has 9223372036854775808, expected integers below 2\^63"),
    (SIZE, [2**64, 12], "is a list of 2, expected a list of integers"),
    (SIZE, [TOO_MANY], "is a list of 1, expected a list of integers"),
    (SIZE, [True, 11], "is a list of 2, expected a list of integers"),
    (SIZE, [12.0], "is a list of 1, expected a list of integers"),
    (SIZE, [11.5, 0.5], "is a list of 2, expected a list of integers"),
    (SIZE, [float("nan")], "is a list of 1, expected a list of integers"),
    (SIZE, ["12"], "is a list of 1, expected a list of integers"),
    (SIZE, [None], "is a list of 1, expected a list of integers"),
    (SIZE, [[12]], "is a list of 1, expected a list of integers"),
    (SIZE, [[12], [1, 2]], "is a list of 2, expected a list of integers"),
    (SIZE, None, "is null, expected a list of integers"),
    (SIZE, 12, "is 12, expected a list of integers"),
    (SIZE, {"a": 1}, "is an object of 1, expected a list of integers"),
    (SIZE, [0] * 100 + [12], "has 101 counts for 12 pixels"),
    (SIZE, "0" * 5000, "counts of the run-length encoding are text of 5000 characters for 12 pixels"),
    (SIZE, compress_counts([13]), "add up to 13, expected"),
    (SIZE, compress_counts([0] * 27 + [12]), "has 28 counts for 12 pixels"),
    (SIZE, compress_counts([13, -1]), "has a count of -1"),
    (SIZE, compress_counts([2**40]), "add up to 1099511627776, expected"),
    (SIZE, compress_counts([12])[:-1] + "P", "stop inside a number"),
    (SIZE, "o" * 12, "stop inside a number"),
    (SIZE, "o" * 14 + "0", "have a number of 15 characters, expected 12 at most"),
    (SIZE, "\n", "have byte 10 at position 0, expected 48..111"),
    (SIZE, "\u00e9", "have byte 195 at position 0"),
    (SIZE, b"\xff\xff", "have byte 255 at position 0"),
    (SIZE, b"0\x00", "have byte 0 at position 1"),
    (SIZE, "0" + ("o" * 11 + "?") * 24, "have a number of more than 62 bits"),
    ([4, 3, 1], [12], "has size .4, 3, 1., expected .height, width."),
    ([12], [12], "has size .12., expected"),
    ([], [12], "has size .., expected"),
    ([-3, -4], [12], "has size .-3, -4., expected"),
    ([3.0, 4.0], [12], "size of a run-length encoding is a list of 2, expected a list of integers"),
    (["3", "4"], [12], "size of a run-length encoding is a list of 2"),
    ([True, True], [1], "size of a run-length encoding is a list of 2"),
    ("34", [12], "size of a run-length encoding is '34'"),
    (None, [12], "size of a run-length encoding is null"),
    ([10**5, 10**5], [10**10], "number of pixels is 10000000000; expected at most 89478485.*--limit pixels=N"),
    ([3 * 10**5, 3 * 10**5], [9 * 10**10], "number of pixels is 90000000000; expected at most 89478485"),
    ([10**9, 10**9], [10**18], r"number of pixels is more than 10\^18; expected at most 89478485"),
    ([2**62, 4], [2**64 - 1], r"number of pixels is more than 10\^18"),
    ([TOO_MANY, 1], [1], "size of a run-length encoding is a list of 2"),
]


@pytest.mark.parametrize(("size", "counts", "message"), BAD, ids=range(len(BAD)))
def test_a_lie_is_one_clear_error(size: Any, counts: Any, message: str) -> None:
    for function in (decode_rle, checked_counts):
        with pytest.raises(AnnotationError, match=message) as raised:
            function({"size": size, "counts": counts})
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize(("size", "counts", "message"), BAD, ids=range(len(BAD)))
def test_an_annotation_with_a_lie_names_its_image(size: Any, counts: Any, message: str) -> None:
    item = {"bbox": [0, 0, 2, 2], "category_id": 1, "area": 4, "segmentation": {"size": size, "counts": counts}}
    with pytest.raises(AnnotationError, match=rf"{message}|of the image") as raised:
        prepare_detection({"image_id": 7, "annotations": [item]}, (3, 4), True)
    assert str(raised.value).startswith("image 7, annotations[0]: segmentation: ")


@pytest.mark.parametrize("missing", ["size", "counts"])
def test_a_key_is_missing(missing: str) -> None:
    rle = {"size": SIZE, "counts": [12], "\n" * 1000: 1}
    del rle[missing]
    with pytest.raises(AnnotationError, match="expected size and counts"):
        decode_rle(rle)


def test_the_size_must_be_the_images() -> None:
    with pytest.raises(AnnotationError, match=r"has size \[3, 4\]: expected \[height, width\] = \[4, 3\] of the image"):
        decode_rle({"size": SIZE, "counts": [12]}, (4, 3))
    assert decode_rle({"size": SIZE, "counts": [12]}, (3, 4)).shape == (3, 4)


def test_the_limit_can_be_raised_and_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=11))
    with pytest.raises(AnnotationError, match="number of pixels is 12; expected at most 11"):
        decode_rle({"size": SIZE, "counts": [12]})
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=2**62))
    with pytest.raises(AnnotationError, match="number of pixels is 4294967296; expected at most 2147483647, which COCO's"):
        checked_counts({"size": [2**16, 2**16], "counts": [2**32]})


@pytest.mark.parametrize("seed", range(100))
def test_valid_masks_pass_as_in_pycocotools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(50):
        height, width = generator.integers(1, 40, 2)
        mask = np.asfortranarray(generator.random((height, width)) < generator.random(), dtype=np.uint8)
        theirs = coco_mask.encode(mask)
        counts, size = checked_counts(theirs, (height, width))
        assert size == (height, width)
        assert (decode_rle(theirs, (height, width)) == mask).all()
        assert (decode_rle({"size": [int(height), int(width)], "counts": counts.tolist()}) == mask).all()
        assert compress_counts(counts).encode() == theirs["counts"]  # what pycocotools gets is what it made
        with_empty_runs = [*counts.tolist(), 0, 0]
        if len(with_empty_runs) <= 2 * mask.size + 2:
            assert (decode_rle({"size": [int(height), int(width)], "counts": with_empty_runs}) == mask).all()


@pytest.mark.parametrize("seed", range(20))
def test_random_text_is_an_error_or_its_counts_are_those_of_pycocotools(seed: int) -> None:
    """Whatever passes our checks means the same to pycocotools, which reads the text without any."""
    generator = np.random.default_rng(seed)
    passed = 0
    for _ in range(500):
        text = generator.integers(48, 54, generator.integers(1, 6)).astype(np.uint8).tobytes().decode()
        height, width = 1, sum(decompress_counts(text))
        if width < 1 or width > 1000 or min(decompress_counts(text)) < 0:
            continue
        rle = {"size": [height, width], "counts": text}
        try:
            ours = decode_rle(rle)
        except AnnotationError:
            continue
        passed += 1
        assert coco_mask.area({**rle, "counts": text.encode()}) == ours.sum()
    assert passed > 20


SQUARE = [1, 1, 8, 1, 8, 8, 1, 8]
POLYGONS: list[tuple[Any, str]] = [
    ([], "segmentation has no polygon"),
    ([[]], r"segmentation\[0\] has 0 numbers"),
    ([[1, 2, 3, 4]], r"segmentation\[0\] has 4 numbers"),
    ([[*SQUARE, 1]], r"segmentation\[0\] has 9 numbers"),
    ([SQUARE, [1, 2, 3]], r"segmentation\[1\] has 3 numbers"),
    ([None], r"segmentation\[0\] is None"),
    (["1, 1, 8, 1, 8, 8"], r"segmentation\[0\] is '1, 1, 8, 1, 8, 8'"),
    ([[*SQUARE[:7], "8"]], r"segmentation\[0\] is \[1, 1, 8, 1, 8, 8, 1, '8'\]"),
    ([[*SQUARE[:7], True]], r"segmentation\[0\] is .*True\]"),
    ([[*SQUARE[:7], None]], r"segmentation\[0\] is .*None\]"),
    ([[*SQUARE[:7], [8]]], r"segmentation\[0\] is a list of 8"),
    ([[*SQUARE[:7], float("nan")]], r"segmentation\[0\] is .*nan\]"),
    ([[*SQUARE[:7], float("inf")]], r"segmentation\[0\] is .*inf\]"),
    ([[*SQUARE[:7], 10**400]], r"segmentation\[0\] is .*an integer of 1329 bits\]"),
    ([[*SQUARE[:7], 1e300]], r"segmentation\[0\] is .*1e\+300\]"),
    ([[*SQUARE[:7], 1e9]], r"segmentation\[0\]: y is 1e\+09: expected -1000 to 1020 in an image of 30x20 pixels"),
    ([[-1e5, *SQUARE[1:]]], r"segmentation\[0\]: x is -100000: expected -1000 to 1030"),
    ([[1040, *SQUARE[1:]]], r"segmentation\[0\]: x is 1040: expected -1000 to 1030"),
    ([[2**31, *SQUARE[1:]]], r"segmentation\[0\]: x is 2.14748e\+09: expected -1000"),
    ([[0, 0, 30, 20] * 500_001], "the number of points is 1000002; expected at most 1000000.*--limit points=N"),
    ([[0, 0, 1, 0, 1, 1]] * 340_000, "the number of points is 1020000; expected at most 1000000"),
    ([[-900, 0, 900, 0] * 1500], "the length of its edges in pixels is 5400000; expected at most 4000000.*outline=N"),
    ({"size": [20, 30], "counts": [1]}, "add up to 1"),
    ("polygon", "segmentation is a str"),
    (5, "segmentation is a int"),
    (None, "segmentation is a NoneType"),
    (True, "segmentation is a bool"),
]


@pytest.mark.parametrize(("value", "message"), POLYGONS, ids=range(len(POLYGONS)))
def test_a_bad_segmentation_is_one_clear_error(value: Any, message: str) -> None:
    item = {"bbox": [0, 0, 2, 2], "category_id": 1, "area": 4, "segmentation": value}
    with pytest.raises(AnnotationError, match=message) as raised:
        prepare_detection({"image_id": 7, "annotations": [item]}, (20, 30), True)
    assert str(raised.value).startswith("image 7, annotations[0]: segmentation")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("size", [(20, 30), (1, 90_000), (9_000, 9_000)])
def test_polygons_may_reach_out_of_their_image(size: tuple[int, int]) -> None:
    height, width = size
    out = max(1000, width)
    assert checks.polygons([[-out, 0, width + out, 0, 0, height]], size, "it") == [[-out, 0, width + out, 0, 0, height]]
    with pytest.raises(AnnotationError, match=r"it: segmentation\[0\]: x is"):
        checks.polygons([[-out - 1, 0, 5, 0, 5, 5]], size, "it")


def test_the_masks_of_one_image_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"bbox": [0, 0, 2, 2], "category_id": 1, "area": 4, "segmentation": [SQUARE]}
    record = {"image_id": 7, "annotations": [item, item]}
    monkeypatch.setattr(limits, "_current", limits.Limits(batch_pixels=1199))
    with pytest.raises(AnnotationError, match="image 7: pixels of the masks of all annotations is 1200; "):
        prepare_detection(record, (20, 30), True)
    monkeypatch.setattr(limits, "_current", limits.Limits(batch_pixels=1200))
    assert prepare_detection(record, (20, 30), True)["masks"].shape == (2, 20, 30)
