"""Masks as polygons along the edges of their pixels. Nothing is simplified: a polygon has exactly the pixels of its mask.

Corners have whole numbers for coordinates: the pixel in column x and row y is the square from (x, y) to (x + 1, y + 1).
Pixels belong together if they share an edge; those that share only a corner are two parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def parts_of(mask: np.ndarray) -> list[np.ndarray]:
    """A polygon for each connected part of a mask, from top to bottom.

    The outline of a hole is joined to the part's own, by a line that is walked in both directions and has no width: the area
    of the polygon, by the shoelace formula and to a program that fills it, is that of the pixels. A program that also draws
    the outline of a polygon shows the line.

    Args:
        mask: bool (height, width).

    Returns:
        float64 (N, 2), (x, y) of the corners in pixels, for each part; none for a mask without pixels.
    """
    outer, holes = _outlines(mask)
    areas = [_area(outline) for outline in outer]
    of_part: list[list[np.ndarray]] = [[outline] for outline in outer]
    for hole in holes:
        x, y = hole[0] + (0.5, -0.5)  # the middle of the pixel above a hole, which belongs to the part around it
        around = [index for index, outline in enumerate(outer) if _contains(outline, x, y)]
        of_part[min(around, key=lambda index: areas[index])].append(hole)
    return [join(outlines) for outlines in of_part]


def join(outlines: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon of several outlines: each is joined to those before it at their nearest corner, as in `parts_of`."""
    joined = outlines[0]
    for outline in outlines[1:]:
        distances = ((joined - outline[0]) ** 2).sum(axis=1)
        near = int(distances.argmin())
        joined = np.concatenate([joined[: near + 1], outline, outline[:1], joined[near:]])
    return joined


def _outlines(mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outlines of parts, clockwise on the screen, and of holes, the other way round; each begins at its top left corner.

    The corners in one row are the ends of its horizontal edges, taken two at a time; so it is with columns. Where two pixels
    share only a corner, that corner counts twice: once for each of them.
    """
    # Corners, row by row
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    single = upper_left ^ upper_right ^ lower_left ^ lower_right
    double = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    rows, columns = np.nonzero(single | double)
    copies = 1 + double[rows, columns]
    rows, columns = np.repeat(rows, copies), np.repeat(columns, copies)
    second = np.zeros(len(rows), dtype=bool)
    second[1:] = (rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1])

    # The other end of the vertical edge of each corner; that of its horizontal edge is its neighbour in the list.
    # Of a corner that counts twice, the first one has the edge to the left. It goes up if the upper left pixel is set.
    low = second == upper_left[rows, columns]
    order = np.lexsort((low, rows, columns))
    partner = np.empty(len(rows), dtype=np.int64)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]

    # Walks
    corners = np.stack([columns, rows], axis=1).astype(np.float64)
    is_hole = (~lower_right[rows, columns]).tolist()
    vertical = partner.tolist()
    seen = bytearray(len(rows))
    outer, holes = [], []
    for start in range(len(rows)):
        if seen[start]:
            continue
        walk, at = [], start
        while not seen[at]:
            end = at ^ 1
            seen[at] = seen[end] = 1
            walk += [at, end]
            at = vertical[end]
        if is_hole[start]:
            holes.append(corners[[start, *walk[:0:-1]]])
        else:
            outer.append(corners[walk])
    return outer, holes


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _contains(outline: np.ndarray, x: float, y: float) -> bool:
    """Whether a point that lies on no edge is inside: a ray to the left crosses an odd number of vertical edges."""
    following = np.roll(outline, -1, axis=0)
    low, high = np.minimum(outline[:, 1], following[:, 1]), np.maximum(outline[:, 1], following[:, 1])
    return bool(((outline[:, 0] < x) & (low < y) & (y < high)).sum() % 2)
