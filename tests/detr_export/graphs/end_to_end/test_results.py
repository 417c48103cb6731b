"""Post-processing in the graph against post-processing in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.graphs.end_to_end.building import Nodes
from detr_export.graphs.end_to_end.results import add_results
from detr_export.runtimes.processing.detection import keep_detections
from tests.detr_export.graphs.end_to_end.running import run

BATCH, QUERIES, CLASSES, SIZE = 3, 20, 7, (480, 641)


def _outputs(top_k: int, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    nodes = Nodes("results")
    sizes = {"height": np.array([SIZE[0]]), "width": np.array([SIZE[1]])}
    results = add_results(nodes, nodes.value("height"), nodes.value("width"), top_k, "pred_masks" in raw)
    return run(nodes, results, {**raw, **sizes})


def _raw(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "logits": draw.normal(0, 3, (BATCH, QUERIES, CLASSES + 1)).astype(np.float32),
        "pred_boxes": draw.uniform(0, 1, (BATCH, QUERIES, 4)).astype(np.float32),
        "pred_masks": draw.normal(0, 3, (BATCH, QUERIES, 5, 6)).astype(np.float32),
    }


@pytest.mark.parametrize("top_k", [1, 7, QUERIES])
def test_the_best_first(top_k: int) -> None:
    raw = _raw(top_k)
    found = _outputs(top_k, raw)
    assert {name: array.dtype.name for name, array in found.items()} == {
        "scores": "float32",
        "labels": "int64",
        "boxes": "float32",
        "masks": "float32",
    }
    for image, kept in enumerate(keep_detections(raw, 0.0, [SIZE] * BATCH)):
        order = np.argsort(-kept.scores, kind="stable")[:top_k]
        assert np.abs(found["scores"][image] - kept.scores[order]).max() < 1e-6
        assert np.array_equal(found["labels"][image], kept.labels[order])
        assert np.abs(found["boxes"][image] - kept.boxes[order]).max() < 1e-3
        assert np.array_equal(found["masks"][image], raw["pred_masks"][image][kept.queries[order]])


def test_no_object_is_no_class_and_the_first_of_equals_comes_first() -> None:
    raw = {name: array for name, array in _raw(0).items() if name != "pred_masks"}
    raw["logits"][:] = 0
    raw["logits"][..., -1] = 20
    raw["logits"][:, 5, 2] = raw["logits"][:, 3, 4] = 3.0
    found = _outputs(4, raw)
    assert found["labels"][:, :2].tolist() == [[4, 2]] * BATCH  # queries 3 and 5
    assert found["labels"].max() < CLASSES
    assert found["scores"].max() < 1e-6
    assert "masks" not in found
