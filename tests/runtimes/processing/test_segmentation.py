"""Semantic, instance and panoptic segmentation against transformers' DetrImageProcessor."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DetrImageProcessor
from transformers.models.detr import image_processing_detr as upstream

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.processing import merging
from detr_export.runtimes.processing.merging import assign_segment_ids, largest_map, merge_masks
from detr_export.runtimes.processing.resizing.masks import resized_rows
from detr_export.runtimes.processing.segmentation import (
    binary_mask_to_rle,
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
    query_masks,
    segmentation_to_rle,
)

MAX_DIFFERING = 1e-4
CLASSES = 7

ORACLE = DetrImageProcessor()


def model_outputs(
    seed: int,
    batch: int = 1,
    queries: int = 14,
    size: tuple[int, int] = (25, 34),
    kept: int = 10,
    radius: tuple[float, float] = (0.05, 0.25),
) -> dict[str, np.ndarray]:
    """Outputs of an imaginary model: noisy ellipses anywhere in the image, `kept` of them with a class.

    Scores of the kept ones lie on both sides of 0.5 and 0.9, some masks reach 1 and some nothing.
    """
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    masks = np.empty((batch, queries, height, width), dtype=np.float32)
    logits = random.normal(0, 1, (batch, queries, CLASSES + 1)).astype(np.float32)
    logits[..., CLASSES] = 8
    for image in range(batch):
        for query in range(queries):
            center_y, center_x = random.uniform(0, height), random.uniform(0, width)
            radius_y, radius_x = random.uniform(*radius, 2) * height
            distance = np.hypot((y - center_y) / radius_y, (x - center_x) / radius_x)
            blob = np.clip(random.uniform(2, 20) * (1 - distance), -random.uniform(5, 100), 25)
            masks[image, query] = blob + random.normal(0, 0.3, size)
        chosen = random.permutation(queries)[:kept]
        logits[image, chosen, random.integers(0, CLASSES, kept)] = random.uniform(7.5, 14, kept)
    boxes = random.random((batch, queries, 4)).astype(np.float32)
    return {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}


def for_torch(outputs: dict[str, np.ndarray]) -> SimpleNamespace:
    return SimpleNamespace(**{name: torch.from_numpy(array.copy()) for name, array in outputs.items()})


def sizes_for(outputs: dict[str, np.ndarray], kind: str) -> list[tuple[int, int]] | None:
    batch = len(outputs["logits"])
    one_each = [(100, 133), (61, 83), (25, 34), (13, 70), (300, 120)]
    return {"masks": None, "same": [(100, 136)] * batch, "each": one_each[:batch]}[kind]


def assert_same_results(ours: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        reference = theirs["segmentation"].numpy()
        assert mine["segmentation"].dtype == reference.dtype
        assert mine["segmentation"].shape == reference.shape
        assert np.mean(mine["segmentation"] != reference) <= MAX_DIFFERING
        assert_same_segments(mine["segments_info"], theirs["segments_info"])


def assert_same_segments(ours: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [{**segment, "score": None} for segment in ours] == [{**segment, "score": None} for segment in expected]
    np.testing.assert_allclose([s["score"] for s in ours], [s["score"] for s in expected], rtol=0, atol=2e-6)
    assert all(round(segment["score"], 6) == segment["score"] for segment in ours)
    json.dumps(ours)  # only Python's own types


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sizes", ["masks", "same", "each"])
def test_semantic_equals_transformers(seed, sizes):
    outputs = model_outputs(seed, batch=1 + seed % 3, size=(25, 34) if seed % 2 else (18, 12))
    target_sizes = sizes_for(outputs, sizes)
    ours = post_process_semantic_segmentation(outputs, target_sizes)
    expected = ORACLE.post_process_semantic_segmentation(for_torch(outputs), target_sizes)
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == np.int64
        assert mine.shape == tuple(theirs.shape)
        assert len(np.unique(mine)) > 1
        assert np.mean(mine != theirs.numpy()) <= MAX_DIFFERING


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", ["masks", "same", "each"])
@pytest.mark.parametrize("thresholds", [{}, {"threshold": 0.9, "mask_threshold": 0.3}, {"overlap_mask_area_threshold": 0.4}])
def test_instance_equals_transformers(seed, sizes, thresholds):
    outputs = model_outputs(seed, batch=1 + seed % 3, size=(25, 34) if seed % 2 else (18, 12))
    target_sizes = sizes_for(outputs, sizes)
    ours = post_process_instance_segmentation(outputs, target_sizes=target_sizes, **thresholds)
    expected = ORACLE.post_process_instance_segmentation(for_torch(outputs), target_sizes=target_sizes, **thresholds)
    assert any(result["segments_info"] for result in expected)
    assert_same_results(ours, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", ["masks", "same", "each"])
@pytest.mark.parametrize("fuse", [None, {0, 1, 2, 3}, set(range(CLASSES))])
def test_panoptic_equals_transformers(seed, sizes, fuse):
    outputs = model_outputs(seed + 50, batch=1 + seed % 3, kept=14)
    target_sizes = sizes_for(outputs, sizes)
    options = {"target_sizes": target_sizes, "label_ids_to_fuse": fuse, "overlap_mask_area_threshold": 0.3}
    ours = post_process_panoptic_segmentation(outputs, **options)
    expected = ORACLE.post_process_panoptic_segmentation(for_torch(outputs), **options)
    assert_same_results(ours, expected)
    was_fused = [segment["was_fused"] for result in ours for segment in result["segments_info"]]
    assert any(was_fused) == bool(fuse)


@pytest.mark.parametrize("kept", [100, 20])
def test_hundred_queries_on_a_large_image(kept):
    """More than 255 rows, so that the counters of `largest_map` are emptied on the way."""
    outputs = model_outputs(3, queries=100, size=(100, 134), kept=kept, radius=(0.02, 0.12))
    options = {"target_sizes": [(600, 803)], "label_ids_to_fuse": {1, 2}}
    ours = post_process_panoptic_segmentation(outputs, **options)
    expected = ORACLE.post_process_panoptic_segmentation(for_torch(outputs), **options)
    assert len(ours[0]["segments_info"]) > 5
    assert_same_results(ours, expected)


def test_positional_arguments_are_in_the_order_of_transformers():
    outputs = model_outputs(5, kept=14)
    sizes = [(50, 60)]
    assert_same_results(
        post_process_instance_segmentation(outputs, 0.6, 0.4, 0.3, sizes, False),
        ORACLE.post_process_instance_segmentation(for_torch(outputs), 0.6, 0.4, 0.3, sizes, False),
    )
    assert_same_results(
        post_process_panoptic_segmentation(outputs, 0.6, 0.4, 0.3, {1, 2, 3}, sizes),
        ORACLE.post_process_panoptic_segmentation(for_torch(outputs), 0.6, 0.4, 0.3, {1, 2, 3}, sizes),
    )


@pytest.mark.parametrize("sizes", ["masks", "each"])
@pytest.mark.parametrize("name", ["instance", "panoptic"])
def test_images_without_kept_queries(sizes, name):
    outputs = model_outputs(1, batch=3)
    outputs["logits"][1] = 0
    outputs["logits"][1, :, CLASSES] = 20
    target_sizes = sizes_for(outputs, sizes)
    run, oracle = {
        "instance": (post_process_instance_segmentation, ORACLE.post_process_instance_segmentation),
        "panoptic": (post_process_panoptic_segmentation, ORACLE.post_process_panoptic_segmentation),
    }[name]
    ours = run(outputs, target_sizes=target_sizes)
    assert_same_results(ours, oracle(for_torch(outputs), target_sizes=target_sizes))
    assert ours[1]["segmentation"].dtype == np.float32
    assert (ours[1]["segmentation"] == -1).all()
    assert ours[1]["segments_info"] == []
    assert ours[0]["segments_info"]


def test_kept_queries_without_pixels_leave_zeros():
    """Kept by score, but no mask reaches the mask threshold: an int32 map of zeros and no segments."""
    outputs = model_outputs(2)
    outputs["pred_masks"][:] -= 60
    ours = post_process_instance_segmentation(outputs)
    assert_same_results(ours, ORACLE.post_process_instance_segmentation(for_torch(outputs)))
    assert not ours[0]["segmentation"].any()
    assert ours[0]["segments_info"] == []


def test_equal_masks_go_to_the_first_query():
    outputs = model_outputs(4, kept=14)
    outputs["pred_masks"][:, 1:5] = outputs["pred_masks"][:, :1]
    outputs["logits"][:, 1:5] = outputs["logits"][:, :1]
    options = {"target_sizes": [(83, 90)], "overlap_mask_area_threshold": 0.1}
    ours = post_process_instance_segmentation(outputs, **options)
    assert_same_results(ours, ORACLE.post_process_instance_segmentation(for_torch(outputs), **options))


def test_far_away_logits_do_not_warn():
    outputs = model_outputs(6)
    outputs["pred_masks"] *= 1000
    assert_same_results(
        post_process_instance_segmentation(outputs, target_sizes=[(60, 70)]),
        ORACLE.post_process_instance_segmentation(for_torch(outputs), target_sizes=[(60, 70)]),
    )


def test_ids_after_a_fused_segment_run_on_as_in_transformers():
    """Classes A (fused), B, A, C side by side: the fourth segment gets the id of the second."""
    masks = np.full((1, 4, 8, 8), -10, dtype=np.float32)
    logits = np.zeros((1, 4, CLASSES + 1), dtype=np.float32)
    for query, label in enumerate([0, 1, 0, 2]):
        masks[0, query, :, 2 * query : 2 * query + 2] = 10
        logits[0, query, label] = 10
    outputs = {"logits": logits, "pred_masks": masks}
    ours = post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})
    assert_same_results(ours, ORACLE.post_process_panoptic_segmentation(for_torch(outputs), label_ids_to_fuse={0}))
    assert [segment["id"] for segment in ours[0]["segments_info"]] == [1, 2, 1, 2]


@pytest.mark.parametrize("won", range(75, 86))
def test_share_of_the_area_is_compared_as_in_transformers(won):
    """80 of 100 pixels is 0.8 in float32, a little more than the double 0.8 it is compared with."""
    probs = torch.zeros(1, 1, 100)
    probs[0, 0] = 1
    labels = torch.full((1, 100), 1)
    labels[0, :won] = 0
    exists, _ = upstream.check_segment_validity(labels, probs, 0)
    ids, segments = assign_segment_ids(np.array([won]), np.array([100]), np.array([0.9], np.float32), np.array([3]), 0.8, ())
    assert (ids[0] == 1) == bool(exists)
    assert len(segments) == int(exists)


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_of_the_map_equal_transformers(seed):
    outputs = model_outputs(seed, batch=3)
    outputs["logits"][1, :, CLASSES] = 50
    options = {"target_sizes": [(61, 83), (20, 30), (40, 30)], "return_coco_annotation": True}
    ours = post_process_instance_segmentation(outputs, **options)
    expected = ORACLE.post_process_instance_segmentation(for_torch(outputs), **options)
    plain = post_process_instance_segmentation(outputs, target_sizes=options["target_sizes"])
    for index, (mine, theirs) in enumerate(zip(ours, expected, strict=True)):
        assert_same_segments(mine["segments_info"], theirs["segments_info"])
        if index == 1:
            np.testing.assert_array_equal(mine["segmentation"], theirs["segmentation"].numpy())
            continue
        assert isinstance(theirs["segmentation"], list)
        json.dumps(mine["segmentation"])
        same_map = torch.from_numpy(plain[index]["segmentation"])
        assert mine["segmentation"] == upstream.convert_segmentation_to_rle(same_map)
        assert [sum(runs[1::2]) for runs in mine["segmentation"]] == pytest.approx(
            [sum(runs[1::2]) for runs in theirs["segmentation"]], abs=2
        )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_binary_mask_to_rle_equals_transformers(seed, dtype):
    random = np.random.default_rng(seed)
    mask = (random.random(random.integers(1, 40, 2)) < [0, 1, 0.1, 0.5, 0.9, 0.99][seed % 6]).astype(dtype)
    runs = binary_mask_to_rle(mask)
    assert runs == upstream.binary_mask_to_rle(mask)
    assert all(type(run) is int for run in runs)
    assert segmentation_to_rle(mask) == upstream.convert_segmentation_to_rle(torch.from_numpy(mask))


def test_run_lengths_of_an_empty_map():
    assert segmentation_to_rle(np.zeros((0, 4), np.int32)) == []
    assert binary_mask_to_rle(np.zeros((0, 4), np.int32)) == []


def test_largest_map_counts_and_picks_the_first_of_equals():
    maps = np.zeros((3, 2, 4), dtype=np.float32)
    maps[0, 0, 2] = maps[0, 0, 3] = 1
    winners, reached = largest_map(maps, (3, 2), threshold=1)
    np.testing.assert_array_equal(winners, [[2, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(reached, [0, 0, 1, 1])
    assert winners.dtype == np.int64


@pytest.mark.parametrize("height", [1, 254, 255, 256, 510, 511])
def test_counters_hold_any_height(height):
    _, reached = largest_map(np.ones((1, 1, 2), dtype=np.float32), (height, 3), threshold=0.5)
    np.testing.assert_array_equal(reached, [3 * height, 3 * height])


@pytest.mark.parametrize("seed", range(4))
def test_merge_equals_compute_segments(seed):
    outputs = model_outputs(seed + 20)
    probs = torch.from_numpy(outputs["pred_masks"][0]).sigmoid().numpy()
    scores = np.random.default_rng(seed).uniform(0.3, 1, len(probs)).astype(np.float32)
    labels = np.arange(len(probs)) % 4
    expected = upstream.compute_segments(
        torch.from_numpy(probs.copy()), torch.from_numpy(scores), torch.from_numpy(labels), 0.4, 0.5, {1, 2}, (90, 77)
    )
    segmentation, segments = merge_masks(probs, scores, labels, (90, 77), 0.4, 0.5, {1, 2})
    assert np.mean(segmentation != expected[0].numpy()) <= MAX_DIFFERING
    assert_same_segments(segments, expected[1])


def test_outputs_may_be_an_object_and_stay_unchanged():
    outputs = model_outputs(7)
    before = {name: array.copy() for name, array in outputs.items()}
    from_mapping = post_process_instance_segmentation(outputs, target_sizes=np.array([[40, 50]]))
    from_object = post_process_instance_segmentation(SimpleNamespace(**outputs), target_sizes=[(40, 50)])
    np.testing.assert_array_equal(from_mapping[0]["segmentation"], from_object[0]["segmentation"])
    assert from_mapping[0]["segments_info"] == from_object[0]["segments_info"]
    for name, array in before.items():
        np.testing.assert_array_equal(outputs[name], array)


@pytest.mark.parametrize(
    "run",
    [post_process_semantic_segmentation, post_process_instance_segmentation, post_process_panoptic_segmentation],
)
@pytest.mark.parametrize(
    ("change", "target_sizes", "message"),
    [
        ({"pred_masks": None}, None, "outputs have no pred_masks"),
        ({"logits": np.zeros((14, 8))}, None, r"logits has shape \(14, 8\), expected \(B, Q, C\+1\)"),
        ({"pred_masks": np.zeros((14, 5, 5))}, None, r"pred_masks has shape \(14, 5, 5\), expected \(B, Q, h, w\)"),
        ({"logits": np.zeros((1, 13, 8))}, None, r"logits are for \(1, 13\)"),
        ({"logits": np.zeros((1, 14, 1))}, None, "at least one class"),
        ({}, [(10, 10), (20, 20)], "2 target sizes were given for 1 images"),
        ({}, [(10, 0)], r"target size is \(10, 0\)"),
        ({}, [(10, 10, 3)], r"target size is \(10, 10, 3\)"),
    ],
)
def test_refuses(run, change, target_sizes, message):
    with pytest.raises(InputError, match=message):
        run({**model_outputs(0), **change}, target_sizes=target_sizes)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("band_values", [1, 3000, 1 << 25])
def test_bands_and_threads_change_nothing(monkeypatch, threads, band_values):
    monkeypatch.setenv("DETR_EXPORT_PROCESSING_THREADS", threads)
    probs = np.random.default_rng(3).random((7, 23, 31), dtype=np.float32)
    scores, labels = np.linspace(0.5, 1, 7, dtype=np.float32), np.arange(7)
    maps = np.moveaxis(probs * scores[:, None, None], 0, -1)
    for size in ((1, 1), (23, 31), (300, 40), (9, 77)):
        resized = np.stack([row.copy() for row in resized_rows(np.ascontiguousarray(maps), size)])
        monkeypatch.setattr(merging, "BAND_VALUES", band_values)
        winners, reached = largest_map(maps, size, threshold=0.6)
        assert np.array_equal(winners, resized.argmax(axis=-1))
        assert np.array_equal(reached, (resized >= np.float32(0.6)).sum(axis=(0, 1)))
        segmentation, segments = merge_masks(probs, scores, labels, size, 0.6, 0.0, ())
        ids = {segment["label_id"]: segment["id"] for segment in segments}
        assert np.array_equal(segmentation, np.vectorize(lambda query, ids=ids: ids.get(query, 0))(winners))


def peak_mb(work) -> float:
    """What `work` allocates at most, in megabytes, beside its result."""
    tracemalloc.start()
    try:
        result = work()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result is not None
    return (peak - kept) / 1e6


def test_merging_a_hundred_masks_takes_little_memory():
    """All of them resized would be 340 MB."""
    random = np.random.default_rng(4)
    logits = np.zeros((1, 100, 11), dtype=np.float32)
    logits[0, np.arange(100), random.integers(0, 10, 100)] = 9
    outputs = {"logits": logits, "pred_masks": random.normal(size=(1, 100, 200, 267)).astype(np.float32)}
    assert peak_mb(lambda: post_process_panoptic_segmentation(outputs, target_sizes=[(800, 1066)])) < 100
    assert peak_mb(lambda: query_masks(outputs["pred_masks"][0], (800, 1066))) < 40


def test_a_large_semantic_map_is_made_in_bands(monkeypatch):
    """The weights of all classes at all pixels of the mask would be 160 MB."""
    random = np.random.default_rng(5)
    outputs = {
        "logits": random.normal(size=(1, 2, 251)).astype(np.float32),
        "pred_masks": random.normal(size=(1, 2, 400, 400)).astype(np.float32),
    }
    whole = post_process_semantic_segmentation(outputs)[0]
    monkeypatch.setattr(merging, "BAND_VALUES", 1 << 22)
    assert peak_mb(lambda: post_process_semantic_segmentation(outputs)) < 60
    assert np.mean(post_process_semantic_segmentation(outputs)[0] == whole) > 0.9999
