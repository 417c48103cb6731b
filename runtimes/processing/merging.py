"""From overlapping per-query masks to one map of segments: the pixel half of instance and panoptic segmentation.

Every pixel goes to the query whose mask probability times score is largest there. A query becomes a segment when it
wins enough of the area that it claims. This file gives the numbers of `compute_segments` in transformers'
`image_processing_detr.py`, but computes them in another way: it never holds the resized masks, it counts all areas in one
pass over the image, and its only loop over queries handles scalars.

One thing differs: a mask is multiplied by its score before it is resized, not after. Resizing is linear, so the results
differ by float32 rounding only, and the multiplication handles 16 times fewer values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from detr_export.runtimes.processing.resizing.masks import linear_taps, resized_rows
from detr_export.runtimes.processing.threads import in_threads, processing_threads

# So many rows fit into a uint8 counter, which is the narrowest type and so the fastest to add to.
COUNTED_ROWS = 255

# Values of the maps that are held at a time (128 MiB of float32): more than those of usual masks, which are one band then.
BAND_VALUES = 1 << 25
# Rows of the result whose pixels are counted or numbered at a time.
COUNTED_BAND = 64


def merge_masks(
    mask_probs: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Collection[int],
    distinct_ids: bool = False,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Merges the masks of the queries that were kept in one image.

    Args:
        mask_probs: float32 (N, h, w) in [0, 1], N at least 1.
        scores: float32 (N,) in [0, 1], the probability of each query's label.
        labels: int (N,), the class of each query.
        size: (height, width) of the result, in pixels.
        mask_threshold: a query claims the pixels where probability times score reaches it.
        overlap_mask_area_threshold: a query becomes a segment if it wins more than this share of the area that it claims.
        label_ids_to_fuse: classes whose segments share one id.
        distinct_ids: see `assign_segment_ids`.

    Returns:
        segmentation: int32 (height, width), segment ids from 1; 0 where the winning query did not become a segment.
        segments_info: see `assign_segment_ids`.
    """
    queries, height, width = mask_probs.shape
    weights = scores.astype(np.float32)

    def weighted(rows: slice) -> np.ndarray:
        maps = np.empty((rows.stop - rows.start, width, queries), dtype=np.float32)
        for y, row in enumerate(maps, rows.start):
            np.multiply(mask_probs[:, y].T, weights, out=row)
        return maps

    winners = np.empty(size, dtype=np.min_scalar_type(queries))
    claimed = write_largest(weighted, (height, width, queries), winners, mask_threshold)
    bands = [slice(top, top + COUNTED_BAND) for top in range(0, size[0], COUNTED_BAND)]
    won = np.sum([np.bincount(winners[band].ravel(), minlength=queries) for band in bands], axis=0)
    ids, segments = assign_segment_ids(
        won, claimed, scores, labels, overlap_mask_area_threshold, label_ids_to_fuse, distinct_ids
    )
    segmentation = np.empty(size, dtype=ids.dtype)
    for band in bands:
        np.take(ids, winners[band], out=segmentation[band], mode="clip")  # no index is clipped; "raise" would copy
    return segmentation, segments


def largest_map(maps: np.ndarray, size: tuple[int, int], threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Resizes maps bilinearly and finds the largest one at every pixel. It never holds all the resized maps.

    Args:
        maps: float32 (h, w, C), any memory order.
        size: (height, width) of the result, in pixels.
        threshold: for `reached` below; with None nothing is counted and `reached` is 0.

    Returns:
        winners: int64 (height, width), the index of the largest map; if several are equal, the lowest index.
        reached: int64 (C,), the number of pixels at which each resized map is at least `threshold`.
    """
    winners = np.empty(size, dtype=np.int64)
    return winners, write_largest(lambda rows: maps[rows], maps.shape, winners, threshold)


def write_largest(
    maps: Callable[[slice], np.ndarray], shape: tuple[int, ...], winners: np.ndarray, threshold: float | None = None
) -> np.ndarray:
    """`largest_map` of maps that are made when they are needed, a band of rows at a time, in threads.

    Args:
        maps: makes some rows of the maps: float32 (rows, w, C), any memory order.
        shape: (h, w, C) of all maps.
        winners: integers (height, width), where the result is written.
        threshold: as in `largest_map`.

    Returns:
        `reached`, as in `largest_map`.
    """
    height, width = winners.shape
    top, bottom, _ = linear_taps(shape[0], height)
    held = max(2, BAND_VALUES // (shape[1] * shape[2]))  # rows of the maps
    reached = np.zeros(shape[2], dtype=np.int64)
    start = 0
    while start < height:
        stop = int(np.searchsorted(bottom, top[start] + held))  # the first row that needs more than is held
        window = slice(int(top[start]), int(bottom[stop - 1]) + 1)
        band = np.ascontiguousarray(maps(window), dtype=np.float32)

        def largest(rows: range, band: np.ndarray = band, above: int = window.start) -> np.ndarray:
            resized = resized_rows(band, (height, width), rows, above, shape[0])
            return _largest_rows(resized, shape[2], winners[rows.start : rows.stop], threshold)

        reached += sum(in_threads(largest, _parts(start, stop)))
        start = stop
    return reached


def _largest_rows(resized: Iterator[np.ndarray], channels: int, winners: np.ndarray, threshold: float | None) -> np.ndarray:
    """Writes the largest channel of each row of pixels, (width, C), into `winners`. Returns `reached` of these rows."""
    height, width = winners.shape
    reached = np.zeros(channels, dtype=np.int64)
    counter = np.zeros((width, channels), dtype=np.uint8)
    above = np.empty((width, channels), dtype=bool)
    for y, row in enumerate(resized):
        winners[y] = row.argmax(axis=1)
        if threshold is None:
            continue
        np.greater_equal(row, np.float32(threshold), out=above)
        np.add(counter, above.view(np.uint8), out=counter)
        if (y + 1) % COUNTED_ROWS == 0 or y + 1 == height:
            reached += counter.sum(axis=0, dtype=np.int64)
            counter[:] = 0
    return reached


def _parts(start: int, stop: int) -> list[range]:
    """The rows from `start` to `stop`, a part for each thread."""
    parts = min(processing_threads(), stop - start)
    edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return [range(*pair) for pair in zip(edges, edges[1:])]


def assign_segment_ids(
    won: np.ndarray,
    claimed: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Collection[int],
    distinct_ids: bool = False,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Decides which queries become segments, and gives them ids.

    The first query of a fused class gets the next id. Later queries of that class get the same id and their own entry in
    the list. As in transformers, the numbering continues from the id that was given last, *even if that was a shared id*:
    with classes A (fused), B, A, C the ids are 1, 2, 1, 2, and B and C have the same id.

    Args:
        won: int (N,), the number of pixels where each query is the largest.
        claimed: int (N,), the number of pixels where each query reaches the mask threshold.
        scores, labels, overlap_mask_area_threshold, label_ids_to_fuse: as in `merge_masks`.
        distinct_ids: continue from the largest id instead, so that an id never stands for two classes.

    Returns:
        ids: int32 (N,), the segment id of each query; 0 if it has none.
        segments_info: one dict for each query that has an id, in the order of the queries: ``id`` (int), ``label_id`` (int),
            ``was_fused`` (bool, the class is one to fuse), ``score`` (float, rounded to 6 digits).
    """
    ids = np.zeros(len(scores), dtype=np.int32)
    segments: list[dict[str, Any]] = []
    fused_ids: dict[int, int] = {}
    current = largest = 0
    for query, label in enumerate(labels.tolist()):
        if won[query] == 0 or claimed[query] == 0:
            continue
        # The reference divides in float32 and compares in double precision.
        share = float(np.float32(won[query]) / np.float32(claimed[query]))
        if not share > overlap_mask_area_threshold:
            continue
        fuse = label in label_ids_to_fuse
        current = fused_ids[label] if label in fused_ids else (largest if distinct_ids else current) + 1
        largest = max(largest, current)
        if fuse:
            fused_ids[label] = current
        ids[query] = current
        score = round(float(scores[query]), 6)
        segments.append({"id": current, "label_id": label, "was_fused": fuse, "score": score})
    return ids, segments
