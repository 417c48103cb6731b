"""Where labels of boxes go: inside the picture, near their boxes, and apart from each other as long as there is room."""

from __future__ import annotations

from typing import Optional

import numpy as np

_REACH = 1.0  # how far from its box a label may be, in its own heights


def place_labels(boxes: np.ndarray, sizes: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """Finds a place for each label. The first label chooses first.

    A label goes above the upper left corner of its box if that place is free and in the picture; else to another corner,
    outside or inside; else to the place nearest to the first one that is free and touches the box or is at most a label's
    height away from it. If there is none, it goes to the corner where it covers least of other labels.

    Args:
        boxes: float (N, 4), (x_min, y_min, x_max, y_max), pixels; they may go beyond the picture.
        sizes: float (N, 2), (width, height) of the labels, pixels. One that is larger than the picture begins at its edge.
        picture: (height, width), pixels.

    Returns:
        float64 (N, 2): the (x, y) of each label's upper left corner.
    """
    corners = np.zeros((len(boxes), 2))
    placed = np.zeros((len(boxes), 4))  # x_min, y_min, x_max, y_max of the labels before
    for index, (box, size) in enumerate(zip(np.asarray(boxes, float), np.asarray(sizes, float))):
        room = np.maximum(np.array([picture[1], picture[0]]) - size, 0)  # largest x and y of a label inside the picture
        choices = np.clip(_corners(box, size), 0, room)
        covered = _covered(choices, size, placed[:index])
        best = choices[covered.argmin()]  # the first of those that cover least
        if covered.min() > 0:
            free = _nearest_free(box, size, room, placed[:index], choices[0])
            best = best if free is None else free
        corners[index] = best
        placed[index] = [*best, *(best + size)]
    return corners


def _corners(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The places at the corners of a box, the best first: above it, below it, inside of it; (8, 2)."""
    (x_min, y_min, x_max, y_max), (width, height) = box, size
    columns = (x_min, x_max - width)
    rows = (y_min - height, y_max, y_min, y_max - height)
    return np.array([(x, y) for y in rows for x in columns])


def _covered(corners: np.ndarray, size: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """How many pixels of other labels a label at each of the places covers, float64 (P,)."""
    low = np.maximum(corners[:, None], placed[None, :, :2])
    high = np.minimum(corners[:, None] + size, placed[None, :, 2:])
    covered: np.ndarray = np.maximum(high - low, 0).prod(axis=-1).sum(axis=1)
    return covered


def _nearest_free(
    box: np.ndarray, size: np.ndarray, room: np.ndarray, placed: np.ndarray, wanted: np.ndarray
) -> Optional[np.ndarray]:
    """The free place in reach of a box that is nearest to the wanted one: first in height, then along the line.

    A label at any free place can be moved to the left and up until it touches another label or the limit, so these
    positions are all that need to be tried.
    """
    reach = _REACH * size[1]
    first = np.clip(box[:2] - size - reach, 0, room)
    last = np.clip(box[2:] + reach, 0, room)
    inside = (placed[:, 2:] > first).all(axis=1) & (placed[:, :2] < last + size).all(axis=1)
    near = placed[inside]

    def positions(axis: int) -> np.ndarray:
        edges = [near[:, axis + 2], near[:, axis] - size[axis], [first[axis], last[axis], wanted[axis]]]
        values = np.unique(np.concatenate(edges))
        values = values[(values >= first[axis]) & (values <= last[axis])]
        return values[np.abs(values - wanted[axis]).argsort(kind="stable")]

    columns = positions(0)
    for y in positions(1):
        line = near[(near[:, 1] < y + size[1]) & (near[:, 3] > y)]
        taken = ((line[:, 0] < columns[:, None] + size[0]) & (line[:, 2] > columns[:, None])).any(axis=1)
        if not taken.all():
            return np.array([columns[taken.argmin()], y])
    return None
