"""What is drawn: lines and labels of the asked sizes, and sizes that fit the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Detections, Segmentation
from detr_export.runtimes.errors import InputError
from detr_export.runtimes.results.captions import plate_size, write_captions
from detr_export.runtimes.results.drawing import color_of, inner_point
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.segmentation import make_segmentation
from detr_export.runtimes.results.tables import Table

SIZE = (300, 400)
FOUND = Detections(
    np.array([0.9, 0.8], np.float32),
    np.array([1, 2]),
    np.array([[50, 60, 300, 200], [100, 100, 350, 280]], np.float32),
    ("cat", "dog"),
    SIZE,
)
BLACK = np.zeros((*SIZE, 3), np.uint8)


def drawn(found: Any, **style: Any) -> np.ndarray:
    return np.asarray(found.draw(BLACK, DrawingStyle(**style)))


def is_color(pixels: np.ndarray, index: int) -> np.ndarray:
    same: np.ndarray = (pixels == color_of(index)).all(axis=-1)
    return same


@pytest.mark.parametrize("width", [1, 2, 7])
def test_lines_have_the_asked_width(width: int) -> None:
    pixels = drawn(FOUND, line_width=width, labels=False)
    assert is_color(pixels[:, 200], 1).sum() == 2 * width  # upper and lower edge
    assert is_color(pixels[60 : 60 + width, 200], 1).all()


def test_without_labels_there_are_boxes_alone() -> None:
    pixels = drawn(FOUND, labels=False, line_width=3)
    expected = np.zeros(SIZE, bool)
    for x_min, y_min, x_max, y_max in FOUND.boxes.astype(int).tolist():
        frame = np.zeros(SIZE, bool)
        frame[y_min : y_max + 1, x_min : x_max + 1] = True
        frame[y_min + 3 : y_max - 2, x_min + 3 : x_max - 2] = False
        expected |= frame
    assert np.array_equal((pixels != 0).any(axis=-1), expected)
    assert (drawn(FOUND, line_width=3) != pixels).any()


@pytest.mark.parametrize("size", [10, 20, 40])
def test_letters_have_the_asked_size(size: int) -> None:
    image = Image.new("RGB", (400, 100))
    write_captions(image, np.array([[10, 90, 20, 95]]), ["Hxg"], [(255, 0, 0)], size)
    plate = np.flatnonzero((np.asarray(image) != 0).any(axis=(1, 2)))
    assert size < len(plate) < 2 * size
    assert plate[-1] == 89  # it stands on its box


def test_plates_have_one_height_and_hold_their_letters() -> None:
    heights = set()
    for text in ("ace", "Age", "dotted", "gjpq"):
        image = Image.new("RGB", (200, 60))
        write_captions(image, np.array([[10, 50, 20, 55]]), [text], [(0, 0, 255)], 20)
        pixels = np.asarray(image)
        plate = np.argwhere((pixels != 0).any(axis=-1))
        heights.add(plate[-1, 0] - plate[0, 0])
        letters = np.argwhere((pixels == 255).all(axis=-1))
        assert (letters.min(axis=0) > plate.min(axis=0)).all()
        assert (letters.max(axis=0) < plate.max(axis=0)).all()
    assert len(heights) == 1


def test_sizes_fit_the_picture() -> None:
    sides = (1, 100, 800, 4000)
    assert [PLAIN.line(side) for side in sides] == [1, 1, 2, 9]
    assert [PLAIN.text(side) for side in sides] == [10, 10, 16, 58]
    assert DrawingStyle(line_width=3, font_size=5).line(4000) == 3
    assert DrawingStyle(line_width=3, font_size=5).text(4000) == 5


@pytest.mark.parametrize("side", [100, 800, 4000])
def test_labels_of_large_pictures_grow(side: int) -> None:
    image = Image.new("RGB", (side, side))
    one = Detections(
        np.ones(1, np.float32), np.array([1]), np.array([[0, side / 2, side, side]], np.float32), ("a",), image.size
    )
    plate = is_color(np.asarray(one.draw(image))[: side // 2], 1).any(axis=1).sum()
    assert PLAIN.text(side) < plate < 2 * PLAIN.text(side)


def test_boxes_beyond_the_picture_are_drawn_as_far_as_they_go() -> None:
    boxes = np.array([[-50, -50, 500, 400], [500, 500, 600, 600]], np.float32)
    beyond = Detections(FOUND.scores, FOUND.labels, boxes, FOUND.names, SIZE)
    pixels = drawn(beyond)
    assert is_color(pixels, 1).any()  # both labels are in the picture
    assert is_color(pixels, 2).any()


@pytest.mark.parametrize("values", [{"line_width": 0}, {"font_size": -1}])
def test_sizes_below_a_pixel_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected at least 1 pixel"):
        DrawingStyle(**values)


def segmentation() -> Segmentation:
    ids = np.zeros(SIZE, np.int32)
    ids[100:200, 100:300] = 1
    info = [{"id": 1, "label_id": 1, "score": 0.9, "was_fused": False}]
    return make_segmentation("panoptic", ids, info, {1: "cat"})


def test_the_name_of_a_segment_is_in_its_middle() -> None:
    found = segmentation()
    changed = np.argwhere((drawn(found) != drawn(found, labels=False)).any(axis=-1))
    middle = (changed.min(axis=0) + changed.max(axis=0)) / 2
    np.testing.assert_allclose(middle, (149.5, 199.5), atol=4)  # it is looked for in steps of 4 pixels
    larger = np.argwhere((drawn(found, font_size=40) != drawn(found, labels=False)).any(axis=-1))
    assert len(larger) > 4 * len(changed)


@pytest.mark.parametrize(("side", "named"), [(20, False), (60, True)])
def test_a_name_does_not_cover_more_than_its_segment(side: int, named: bool) -> None:
    ids = np.zeros((100, 100), np.int32)
    ids[:side, :side] = 1
    info = [{"id": 1, "label_id": 1, "score": 0.9, "was_fused": False}]
    found = make_segmentation("panoptic", ids, info, {1: "wheelbarrow"})
    black = np.zeros((100, 100, 3), np.uint8)
    width, height = plate_size("wheelbarrow 0.90", PLAIN.text(100))
    assert (side**2 > width * height) is named
    without = found.draw(black, DrawingStyle(labels=False))
    assert (found.draw(black).tobytes() != without.tobytes()) is named


def test_a_name_is_far_from_the_edges_of_its_segment() -> None:
    rows, columns = np.mgrid[:300, :400]
    corner = (columns < 100) | (rows >= 280)  # a broad part, and a narrow one towards which its middle lies
    x, y = inner_point(corner)
    assert abs(x - 50) < 8
    assert 50 < y < 250
    ring = abs(np.hypot(rows - 150, columns - 200) - 100) < 30
    x, y = inner_point(ring)
    assert abs(np.hypot(y - 150, x - 200) - 100) < 8  # about the middle between its edges
    thin = np.zeros((3000, 4000), bool)
    thin[1234, 20:90] = True  # too thin for a coarse look
    x, y = inner_point(thin)
    assert thin[int(y), int(x)]
    assert 40 < x < 70


def test_what_a_drawing_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"segments have outlines of one pixel; leave line_width \(--line-width\) out"):
        drawn(segmentation(), line_width=2)
    box = np.array([10, 10, 90, 90], np.float32)
    table = Table(box, box[None], box[None], (), SIZE)
    assert is_color(drawn(table, line_width=5)[50], 1).sum() == 10
    for style in ({"font_size": 9}, {"labels": False}):
        with pytest.raises(InputError, match="cells of tables have no labels"):
            drawn(table, **style)
