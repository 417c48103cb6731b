"""From overlapping per-query masks to one map of segments: the pixel half of instance and panoptic segmentation.

Every pixel goes to the query whose mask probability times score is largest there. A query becomes a segment when it
wins enough of the area that it claims. This file gives the numbers of `compute_segments` in transformers'
`image_processing_detr.py`, but computes them in another way: it never holds the resized masks, it counts all areas in one
pass over the image, and its only loop over queries handles scalars.

One thing differs: a mask is multiplied by its score before it is resized, not after. Resizing is linear, so the results
differ by float32 rounding only, and the multiplication handles 16 times fewer values.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from detr_export.runtimes.processing.resizing.masks import resized_rows

# So many rows fit into a uint8 counter, which is the narrowest type and so the fastest to add to.
COUNTED_ROWS = 255


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
    weighted = mask_probs * scores.astype(np.float32)[:, None, None]
    winners, claimed = largest_map(np.moveaxis(weighted, 0, -1), size, mask_threshold)
    won = np.bincount(winners.ravel(), minlength=len(scores))
    ids, segments = assign_segment_ids(
        won, claimed, scores, labels, overlap_mask_area_threshold, label_ids_to_fuse, distinct_ids
    )
    return ids[winners], segments


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
    maps = np.ascontiguousarray(maps, dtype=np.float32)
    height, width = size
    channels = maps.shape[-1]
    winners = np.empty((height, width), dtype=np.intp)
    reached = np.zeros(channels, dtype=np.int64)
    counter = np.zeros((width, channels), dtype=np.uint8)
    above = np.empty((width, channels), dtype=bool)
    for y, row in enumerate(resized_rows(maps, size)):
        np.argmax(row, axis=1, out=winners[y])
        if threshold is None:
            continue
        np.greater_equal(row, np.float32(threshold), out=above)
        np.add(counter, above.view(np.uint8), out=counter)
        if (y + 1) % COUNTED_ROWS == 0 or y + 1 == height:
            reached += counter.sum(axis=0, dtype=np.int64)
            counter[:] = 0
    return winners.astype(np.int64, copy=False), reached


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
