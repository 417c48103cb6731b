"""Labels lie inside the picture, and apart from each other as long as there is room near their boxes."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.runtimes.results.label_places import place_labels


def covers(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two labels (x_min, y_min, x_max, y_max) share a pixel."""
    return bool((np.maximum(one[:2], other[:2]) < np.minimum(one[2:], other[2:])).all())


def labels_of(boxes: np.ndarray, sizes: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    corners = place_labels(boxes, sizes, picture)
    assert corners.shape == (len(boxes), 2)
    return np.concatenate([corners, corners + sizes], axis=1)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Random boxes and labels of whole pixels; some boxes go beyond the picture."""
    draws = np.random.default_rng(seed)
    picture = (int(draws.integers(30, 90)), int(draws.integers(30, 90)))
    count = int(draws.integers(1, 25))
    low = draws.integers(-10, 80, (count, 2))
    boxes = np.concatenate([low, low + draws.integers(0, 40, (count, 2))], axis=1)
    height = int(draws.integers(4, 10))
    sizes = np.stack([draws.integers(8, 30, count), np.full(count, height)], axis=1)
    return boxes, sizes, picture


@pytest.mark.parametrize("seed", range(60))
def test_labels_are_inside_and_apart_while_there_is_room(seed: int) -> None:
    boxes, sizes, (height, width) = drawn(seed)
    labels = labels_of(boxes, sizes, (height, width))
    assert (labels[:, :2] >= 0).all()
    assert (labels[:, 2:] <= [width, height]).all()
    for index, (label, box, size) in enumerate(zip(labels, boxes, sizes, strict=True)):
        before = labels[:index]
        if not any(covers(label, other) for other in before):
            continue
        # Every place that touches the box, or is at most a label's height away from it
        room = np.array([width, height]) - size
        first = np.clip(box[:2] - size - size[1], 0, room)
        last = np.clip(box[2:] + size[1], 0, room)
        for y in range(first[1], last[1] + 1):
            for x in range(first[0], last[0] + 1):
                place = np.array([x, y, x + size[0], y + size[1]])
                assert any(covers(place, other) for other in before), f"label {index} has room at {x}, {y}"


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_near_their_boxes(seed: int) -> None:
    boxes, sizes, picture = drawn(seed)
    inside = np.clip(boxes, 0, [picture[1], picture[0]] * 2)
    labels = labels_of(boxes, sizes, picture)
    gaps = np.maximum(np.maximum(inside[:, :2] - labels[:, 2:], labels[:, :2] - inside[:, 2:]), 0)
    assert (gaps <= sizes[:, 1:]).all()


@pytest.mark.parametrize(
    ("box", "corner"),
    [
        ((20, 30, 80, 70), (20, 20)),  # above
        ((20, 5, 80, 70), (20, 0)),  # no room above: at the edge
        ((90, 30, 120, 70), (60, 20)),  # moved to the left, into the picture
        ((-20, -20, 120, 120), (0, 0)),
        ((50, 200, 60, 220), (50, 90)),  # the box lies below the picture
    ],
)
def test_the_first_place_is_above_the_left_corner(box: tuple[int, ...], corner: tuple[int, int]) -> None:
    assert place_labels(np.array([box]), np.array([[40, 10]]), (100, 100)).tolist() == [list(corner)]


def test_labels_of_one_box_go_to_its_corners() -> None:
    boxes, sizes = np.array([[30, 40, 170, 160]] * 8), np.array([[40, 10]] * 8)
    assert place_labels(boxes, sizes, (200, 200)).tolist() == [
        [30, 30],
        [130, 30],
        [30, 160],
        [130, 160],
        [30, 40],
        [130, 40],
        [30, 150],
        [130, 150],
    ]


def test_a_label_that_is_larger_than_the_picture_begins_at_its_edge() -> None:
    assert place_labels(np.array([[5, 5, 8, 8]]), np.array([[40, 30]]), (10, 10)).tolist() == [[0, 0]]


def test_without_room_a_label_covers_as_little_as_it_can() -> None:
    boxes, sizes = np.array([[0, 0, 10, 10], [0, 5, 10, 10]]), np.array([[10, 6], [10, 6]])
    assert place_labels(boxes, sizes, (10, 10)).tolist() == [[0, 0], [0, 4]]


def test_no_labels() -> None:
    assert place_labels(np.zeros((0, 4)), np.zeros((0, 2)), (10, 10)).shape == (0, 2)
