"""COCO run-length encoding against pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.processing.rle import compress_counts, decode_rle, decompress_counts, encode_rle

# pycocotools' own decode and area were written against numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def masks() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:300, :420]
    cases = {
        "empty": np.zeros((6, 5), bool),
        "full": np.ones((6, 5), bool),
        "one set pixel": np.ones((1, 1), bool),
        "one clear pixel": np.zeros((1, 1), bool),
        "first pixel only": np.eye(4, 3, dtype=bool) & (np.arange(3) == 0),
        "last pixel only": np.arange(12).reshape(4, 3) == 11,
        "row": np.array([[0, 1, 1, 0, 1]], bool),
        "column": np.array([[1], [0], [1]], bool),
        "checkers": (np.indices((9, 8)).sum(0) % 2).astype(bool),
        "disc": (y - 150) ** 2 + (x - 200) ** 2 < 90**2,
        "rings": np.sin(np.hypot(y - 100, x - 300) / 7) > 0,
        "runs longer than 16 bits": np.arange(640 * 480).reshape(480, 640) > 200_000,
    }
    for index in range(20):
        height, width = random.integers(1, 60, 2)
        cases[f"random {index}"] = random.random((height, width)) < random.random()
    return cases


CASES = masks()


def reference(mask: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


@pytest.mark.parametrize("name", CASES)
def test_compressed_counts_equal_pycocotools(name):
    encoded, expected = encode_rle(CASES[name]), reference(CASES[name])
    assert encoded["size"] == list(expected["size"])
    assert compress_counts(encoded["counts"]) == expected["counts"].decode()


@pytest.mark.parametrize("name", CASES)
def test_pycocotools_reads_the_counts(name):
    encoded = json.loads(json.dumps(encode_rle(CASES[name])))
    read = coco.frPyObjects(encoded, *encoded["size"])
    np.testing.assert_array_equal(coco.decode(read), CASES[name])
    assert coco.area(read) == CASES[name].sum()


@pytest.mark.parametrize("name", CASES)
def test_decodes_both_forms(name):
    expected = reference(CASES[name])
    encoded = encode_rle(CASES[name])
    text = expected["counts"].decode()
    for counts in (encoded["counts"], expected["counts"], text):
        decoded = decode_rle({"size": expected["size"], "counts": counts})
        np.testing.assert_array_equal(decoded, CASES[name])
        assert decoded.dtype == np.uint8
        assert decoded.flags.f_contiguous
    assert decompress_counts(text) == encoded["counts"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtype_and_memory_order_do_not_matter(dtype, order):
    mask = CASES["disc"]
    assert encode_rle(np.asarray(mask * 3, dtype=dtype, order=order)) == encode_rle(mask)


@pytest.mark.parametrize("seed", range(10))
def test_compression_turns_around_on_any_counts(seed):
    random = np.random.default_rng(seed)
    counts = (2 ** random.uniform(0, 31, random.integers(0, 200))).astype(np.int64)
    assert decompress_counts(compress_counts(counts)) == counts.tolist()


@pytest.mark.parametrize("edge", [0, 1, 15, 16, 17, 31, 32, 511, 512, 513, 16383, 16384, 2**19, 2**24])
def test_group_boundaries_equal_pycocotools(edge):
    counts = [edge, 3, 5, edge + 3, 0, 2 * edge + 1, edge // 2, 7]
    expected = coco.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, sum(counts))["counts"]
    assert compress_counts(counts) == expected.decode()


def test_mask_of_another_rank_is_refused():
    with pytest.raises(InputError, match=r"shape \(2, 3, 4\), expected \(height, width\)"):
        encode_rle(np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"counts": [4]}, "expected size and counts"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 3, expected 2x2 = 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "a count of -1"),
        ({"size": [2, 2, 1], "counts": [4]}, "size \\[2, 2, 1\\]"),
        ({"size": [2, -2], "counts": []}, "size \\[2, -2\\]"),
        ({"size": "2x2", "counts": [4]}, "size of a run-length encoding is '2x2'"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "counts of a run-length encoding is"),
        ({"size": [2, 2], "counts": [[1, 3]]}, "counts of a run-length encoding is"),
        ({"size": [2, 2], "counts": "4 "}, "byte 32 at position 1"),
        ({"size": [2, 2], "counts": "p"}, "byte 112 at position 0"),
        ({"size": [2, 2], "counts": "é"}, "byte 195 at position 0"),
        ({"size": [2, 2], "counts": "4X"}, "stop inside a number"),
        ({"size": [2, 2], "counts": "X" * 12 + "1"}, "13 characters"),
    ],
)
def test_damaged_encodings_are_refused(rle, message):
    with pytest.raises(AnnotationError, match=message):
        decode_rle(rle)
