"""Detections equal transformers 4.57.6's, which computes them in torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DetrImageProcessor as Oracle

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.processing.detection import (
    center_to_corners,
    keep_detections,
    post_process_object_detection,
    softmax,
)
from detr_export.runtimes.processing.image_processor import DetrImageProcessor


def raw_outputs(seed: int, batch: int, queries: int, classes: int, scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "logits": (rng.standard_normal((batch, queries, classes + 1)) * scale).astype(np.float32),
        "pred_boxes": rng.random((batch, queries, 4), dtype=np.float32),
    }


def oracle(outputs: dict[str, np.ndarray], threshold: float, target_sizes: Any) -> list[dict[str, np.ndarray]]:
    tensors = SimpleNamespace(**{name: torch.from_numpy(array) for name, array in outputs.items()})
    if isinstance(target_sizes, np.ndarray):
        target_sizes = torch.from_numpy(target_sizes)
    results = Oracle().post_process_object_detection(tensors, threshold=threshold, target_sizes=target_sizes)
    return [{name: tensor.numpy() for name, tensor in result.items()} for result in results]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("sizes", ["none", "list", "int64", "float32"])
def test_detections_equal_the_oracle(seed: int, threshold: float, sizes: str) -> None:
    batch, queries, classes = 1 + seed % 3, (0, 1, 17, 100)[seed % 4], (1, 5, 91)[seed % 3]
    outputs = raw_outputs(seed, batch, queries, classes, scale=(1, 4, 40)[seed % 3])
    pairs = np.random.default_rng(seed).integers(1, 2000, (batch, 2))
    targets: Any = {"none": None, "list": [tuple(p) for p in pairs.tolist()], "int64": pairs}.get(
        sizes, pairs.astype(np.float32)
    )
    expected = oracle(outputs, threshold, targets)
    got = post_process_object_detection(outputs, threshold, targets)
    assert len(got) == batch
    for mine, theirs in zip(got, expected, strict=True):
        assert list(mine) == ["scores", "labels", "boxes"]
        assert {k: (v.dtype, v.shape) for k, v in mine.items()} == {k: (v.dtype, v.shape) for k, v in theirs.items()}
        np.testing.assert_allclose(mine["scores"], theirs["scores"], rtol=1e-6, atol=1e-37)
        np.testing.assert_array_equal(mine["labels"], theirs["labels"])
        np.testing.assert_array_equal(mine["boxes"], theirs["boxes"])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.9, 1.0])
def test_the_kept_queries_are_those_of_the_detections(seed: int, threshold: float) -> None:
    outputs = raw_outputs(seed, 3, (0, 1, 17, 100)[seed % 4], 5, scale=3)
    for image, kept in enumerate(keep_detections(outputs, threshold, [(30, 40)] * 3)):
        (expected,) = oracle({name: array[image][None] for name, array in outputs.items()}, -1.0, [(30, 40)])
        assert kept.queries.dtype == np.int64
        assert kept.queries.tolist() == np.flatnonzero(expected["scores"] > np.float32(threshold)).tolist()
        np.testing.assert_array_equal(kept.labels, expected["labels"][kept.queries])
        np.testing.assert_array_equal(kept.boxes, expected["boxes"][kept.queries])


def test_a_detection_by_hand() -> None:
    logits = np.log(np.array([[[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]], dtype=np.float32))
    boxes = np.array([[[0.5, 0.5, 1, 1], [0, 0, 0, 0], [0.25, 0.5, 0.5, 0.2]]], dtype=np.float32)
    (result,) = post_process_object_detection({"logits": logits, "pred_boxes": boxes}, 0.5, [(100, 200)])
    np.testing.assert_allclose(result["scores"], [0.7, 0.6], rtol=1e-6)
    assert result["labels"].tolist() == [0, 1]
    np.testing.assert_allclose(result["boxes"], [[0, 0, 200, 100], [0, 40, 100, 60]], atol=1e-5)


def test_the_threshold_is_strict_and_compared_in_float32() -> None:
    logits = np.array([[[0.0, 0.0]]], dtype=np.float32)
    outputs = {"logits": logits, "pred_boxes": np.zeros((1, 1, 4), np.float32)}
    assert len(post_process_object_detection(outputs, 0.5)[0]["scores"]) == 0
    # One ulp of float64 below a half is a half in float32, so this is not above the threshold either, as in torch.
    below = np.nextafter(0.5, 0)
    assert len(post_process_object_detection(outputs, below)[0]["scores"]) == len(oracle(outputs, below, None)[0]["scores"])
    assert len(post_process_object_detection(outputs, 0.4999)[0]["scores"]) == 1


def test_outputs_may_be_an_object_and_the_processor_delegates() -> None:
    outputs = raw_outputs(0, 1, 9, 3, 2.0)
    results = [
        post_process_object_detection(outputs, 0.2),
        post_process_object_detection(SimpleNamespace(**outputs), 0.2),
        DetrImageProcessor().post_process_object_detection(outputs, threshold=0.2),
    ]
    for result in results:
        np.testing.assert_array_equal(result[0]["scores"], results[0][0]["scores"])
        assert len(result[0]["scores"]) > 0


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 3e38])
def test_softmax_is_stable(shift: float) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32) + np.float32(shift)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits).softmax(-1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


def test_corners_keep_the_dtype() -> None:
    for dtype in (np.float32, np.float64):
        corners = center_to_corners(np.array([[10, 20, 4, 6]], dtype=dtype))
        assert corners.dtype == dtype
        assert corners.tolist() == [[8, 17, 12, 23]]


@pytest.mark.parametrize(
    ("change", "target_sizes", "message"),
    [
        ({}, [(1, 2)], "1 target sizes for a batch of 2"),
        ({}, np.ones((3, 2)), "3 target sizes"),
        ({}, np.ones((2, 3)), r"shape \(2, 3\)"),
        ({}, [(1, 2), (3,)], "pairs"),
        ({}, [(1, 2), "ab"], "pairs"),
        ({"logits": np.zeros((9, 4), np.float32)}, None, r"\(B, Q, C\+1\)"),
        ({"logits": np.zeros((2, 9, 1), np.float32)}, None, "at least one class"),
        ({"pred_boxes": np.zeros((2, 8, 4), np.float32)}, None, r"expected \(2, 9, 4\)"),
    ],
)
def test_wrong_shapes_are_refused(change: dict[str, np.ndarray], target_sizes: Any, message: str) -> None:
    outputs = {**raw_outputs(0, 2, 9, 3, 1.0), **change}
    with pytest.raises(InputError, match=message):
        post_process_object_detection(outputs, 0.5, target_sizes)


@pytest.mark.parametrize("outputs", [{"logits": np.zeros((1, 1, 2))}, SimpleNamespace(pred_boxes=np.zeros((1, 1, 4)))])
def test_missing_outputs_are_named(outputs: Any) -> None:
    with pytest.raises(InputError, match=r"no (logits|pred_boxes)"):
        post_process_object_detection(outputs)
