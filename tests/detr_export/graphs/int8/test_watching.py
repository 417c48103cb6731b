"""What is seen of a graph's values: the same as NumPy sees, in little memory, and nothing that is not finite."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from detr_export.graphs.int8.calibration import CalibratedGraph
from detr_export.graphs.int8.inserting import watched_values
from detr_export.graphs.int8.layers import int8_layers
from detr_export.graphs.int8.watching import Feeds, open_graph, watch
from detr_export.runtimes.errors import BackendError, VerificationError


def twice(dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = x + x."""
    x, y = (helper.make_tensor_value_info(name, dtype, ["size", 3]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"], "add")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def test_the_largest_magnitudes(calibrated: CalibratedGraph, feeds: list[Feeds]) -> None:
    names = watched_values(calibrated.model.graph, int8_layers(calibrated.layers))
    found = watch(calibrated.model, names, iter(feeds))
    model = onnx.ModelProto()
    model.CopyFrom(calibrated.model)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    session = open_graph(model)
    runs = [session.run(names, dict(given)) for given in feeds]
    for index, name in enumerate(names):
        assert found[name].largest == pytest.approx(max(np.abs(run[index]).max() for run in runs), rel=1e-6)
        assert found[name].counts.sum() == sum(run[index].size for run in runs)  # they are few: all are samples


def test_large_values_are_sampled_evenly() -> None:
    values = np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)
    found = watch(twice(), ["y"], [{"x": values}])["y"]
    assert found.largest == 2 * 2_999_999
    assert 60_000 < found.counts.sum() < 70_000
    assert found.counts.max() - found.counts.min() <= 2


def test_halves() -> None:
    found = watch(twice(TensorProto.FLOAT16), ["y"], [{"x": np.array([[1, -3, 2]], dtype=np.float16)}])["y"]
    assert found.largest == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(value: float) -> None:
    pictures: list[Feeds] = [{"x": np.ones((4, 3), dtype=np.float32)}, {"x": np.full((1, 3), value, dtype=np.float32)}]
    pictures[1]["x"][0, 1:] = 1.0  # type: ignore[index]
    with pytest.raises(VerificationError, match="the value 'y' is not finite on a calibration picture"):
        watch(twice(), ["y"], pictures)


def test_one_picture_at_a_time() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def many() -> Iterator[Feeds]:
        for _ in range(500):
            gc.collect(0)
            assert sum(item() is not None for item in alive) <= 1
            picture = np.ones((100, 3), dtype=np.float32)
            alive.append(weakref.ref(picture))
            yield {"x": picture}
            del picture

    assert watch(twice(), ["y"], many())["y"].counts.sum() == 500 * 300


def test_a_graph_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        watch(twice(), ["y"], [{"x": np.ones((2, 4), dtype=np.float32)}])
