"""What each layer costs: a layer that is made sensitive on purpose comes first."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from detr_export.graphs.int8.calibration import CalibratedGraph, calibrate
from detr_export.graphs.int8.layers import int8_layers
from detr_export.graphs.int8.sensitivity import rank_layers
from detr_export.graphs.int8.watching import Feeds, open_graph
from detr_export.runtimes.mask_head import PYRAMID, SHARED
from tests.benchmarks.conftest import Watcher

SENSITIVE = "detr.model.encoder.layers.0"


def with_outlier(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with one channel between fc1 and fc2 a thousand times as large."""
    made = copy.deepcopy(model)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}

    def of(layer: str, op_type: str) -> onnx.NodeProto:
        key = f"{SENSITIVE}.{layer}"
        return next(node for node in made.graph.node if node.op_type == op_type and key in str(node.metadata_props))

    for tensor, place, factor in (
        (weights[of("fc1", "MatMul").input[1]], (slice(None), 3), 1000.0),
        (weights[of("fc1", "Add").input[1]], (3,), 1000.0),
        (weights[of("fc2", "MatMul").input[1]], (3, slice(None)), 0.001),
    ):
        array = numpy_helper.to_array(tensor).copy()
        array[place] *= factor
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return made


def test_a_sensitive_layer_comes_first(encoder: CalibratedGraph, feeds: list[Feeds]) -> None:
    model = with_outlier(encoder.model)
    exact, same = (open_graph(item).run(["logits"], dict(feeds[0]))[0] for item in (encoder.model, model))
    np.testing.assert_allclose(same, exact, atol=1e-3)
    watcher = Watcher()
    graph = calibrate(model, feeds, "encoder", "minmax")
    found = rank_layers(graph, feeds[:2], watcher)
    assert found[0].module == f"{SENSITIVE}.fc2"
    assert found[0].keep_float
    assert found[0].share > 2 * found[1].share
    assert len(found) == len(int8_layers(graph.layers)) == watcher.steps[-1][1]
    json.dumps([item.to_dict() for item in found], allow_nan=False)
    assert found[0].summary().endswith("fc2  (keep float)")
    # Without the outlier the same layer is like the others.
    plain = next(item for item in rank_layers(encoder, feeds[:2]) if item.module == f"{SENSITIVE}.fc2")
    assert not plain.keep_float
    changed = [name for name, value in plain.snr.items() if value < np.inf]
    assert set(plain.snr) - set(changed) == {SHARED}  # it is made of the backbone's features
    assert all(found[0].snr[name] < plain.snr[name] - 10 for name in changed)


def test_a_layer_alone_is_the_int8_graph_of_that_layer(encoder: CalibratedGraph, feeds: list[Feeds]) -> None:
    chosen = next(layer for layer in encoder.layers if layer.module == f"{SENSITIVE}.fc1")
    others = [layer.module for layer in encoder.layers if layer.module != chosen.module]
    measured = next(item for item in rank_layers(encoder, feeds[:1]) if item.module == chosen.module)
    names = list(measured.snr)
    assert names[:2] == ["logits", "pred_boxes"]
    assert PYRAMID[0] in {value.name for value in encoder.model.graph.output} - set(names)
    found, exact = (open_graph(item).run(names, dict(feeds[0])) for item in (encoder.int8(others), encoder.model))
    for name, value, truth in zip(names, found, exact, strict=True):
        if name == SHARED:
            assert np.array_equal(value, truth)
            assert measured.snr[name] == np.inf
        else:
            noise = 10 * np.log10(np.square(truth).sum() / np.square(value - truth).sum())
            assert measured.snr[name] == pytest.approx(noise, abs=0.5)
