"""What each layer alone costs: the float graph with one layer in int8, against the float graph, on calibration pictures."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from detr_export.graphs.editing import replace_nodes
from detr_export.graphs.int8.calibration import CalibratedGraph
from detr_export.graphs.int8.inserting import DEQUANTIZE, QUANTIZE, settled
from detr_export.graphs.int8.layers import CONVOLUTIONS, Layer, int8_layers, weight_axis
from detr_export.graphs.int8.watching import Feeds, open_graph, run_graph
from detr_export.runtimes.mask_head import FEATURE_MASK, PYRAMID
from detr_export.runtimes.progress import SILENT, Progress

PICTURES = 4  # how many pictures are run for each layer
_LEVELS = 127
_UNEQUAL = 3.0  # a layer with this many times its equal share of the noise is advised to stay float
# Early features, handed on to a mask head. Few layers stand before them, and each of those has a large share of their noise.
_EARLY = {*PYRAMID, FEATURE_MASK}


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer in int8 does to the outputs."""

    module: str
    # dB, by output: 10 log10(sum of squares of the output / of its change); inf: it does not change. A detector's early
    # features, which its mask head takes, are left out.
    snr: dict[str, float]
    share: float  # of the noise of all layers, in the output where this layer's share is largest
    keep_float: bool  # whether it is advised to stay float

    def summary(self) -> str:
        """One line for people."""
        ratios = ", ".join(f"{name} {value:.1f} dB" for name, value in self.snr.items())
        return f"{ratios}, {self.share:.0%} of the noise  {self.module}{'  (keep float)' if self.keep_float else ''}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None stands for it."""
        ratios = {name: value if math.isfinite(value) else None for name, value in self.snr.items()}
        return {**asdict(self), "snr": ratios}


def rank_layers(calibrated: CalibratedGraph, feeds: Iterable[Feeds], progress: Progress = SILENT) -> list[LayerSensitivity]:
    """Measures each layer that can be int8; the one that costs most comes first.

    Args:
        calibrated: the graph.
        feeds: the graph's inputs for each picture. All are held at once, so they should be few, such as `PICTURES`.
        progress: is told each layer.

    Raises:
        BackendError: ONNX Runtime cannot run a graph.
    """
    model, pictures = calibrated.model, list(feeds)
    outputs = [value.name for value in model.graph.output if value.name not in _EARLY]
    session = open_graph(model)
    truths = [_floats(run_graph(session, outputs, given)) for given in pictures]
    del session
    power = np.sum([[np.square(value).sum() for value in truth] for truth in truths], axis=0)

    # The noise of each layer, in each output
    layers = int8_layers(calibrated.layers)
    noises = []
    for done, layer in enumerate(layers):
        progress.step(done, len(layers), layer.module)
        session = open_graph(_with_one(calibrated, layer))
        noise = np.zeros(len(outputs))
        for given, truth in zip(pictures, truths, strict=True):
            found = _floats(run_graph(session, outputs, given))
            noise += [np.square(value - exact).sum() for value, exact in zip(found, truth, strict=True)]
        noises.append(noise)
    progress.step(len(layers), len(layers))

    # What that is of the signal, and of all noise
    measured = np.array(noises)
    shares = np.max(measured / np.maximum(measured.sum(axis=0), np.finfo(float).tiny), axis=1)
    with np.errstate(divide="ignore"):
        ratios = 10 * np.log10(power / measured)
    ranked = [
        LayerSensitivity(
            layer.module,
            {name: float(value) for name, value in zip(outputs, ratio, strict=True)},
            float(share),
            bool(share * len(layers) > _UNEQUAL),
        )
        for layer, ratio, share in zip(layers, ratios, shares, strict=True)
    ]
    return sorted(ranked, key=lambda item: -item.share)


def _with_one(calibrated: CalibratedGraph, layer: Layer) -> onnx.ModelProto:
    """The float graph with the values and weights of one layer rounded to int8 and back."""
    twin = copy.deepcopy(calibrated.model)
    graph = twin.graph
    (node,) = [node for node in graph.node if node.name == layer.name]
    (weight,) = [tensor for tensor in graph.initializer if tensor.name == layer.weight]
    array = numpy_helper.to_array(weight)
    rounded = numpy_helper.from_array(_rounded(array, weight_axis(node)), f"{layer.weight}_rounded")
    graph.initializer.append(rounded)
    graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.int8), "no_zero_point"))

    def pair(name: str, threshold: float, output: str) -> list[onnx.NodeProto]:
        scale = f"{output}_scale"
        graph.initializer.append(numpy_helper.from_array(np.array(threshold / _LEVELS, dtype=array.dtype), scale))
        return [
            helper.make_node(QUANTIZE, [name, scale, "no_zero_point"], [f"{output}_int8"]),
            helper.make_node(DEQUANTIZE, [f"{output}_int8", scale, "no_zero_point"], [output]),
        ]

    value, result = node.input[0], node.output[0]
    before = pair(value, calibrated.thresholds[value], f"{layer.name}_input")
    after = []
    node.input[0], node.input[1] = f"{layer.name}_input", rounded.name
    if node.op_type in CONVOLUTIONS:
        threshold = calibrated.thresholds[settled(calibrated.model.graph, result)]
        node.output[0] = f"{result}_exact"
        after = pair(node.output[0], threshold, result)
    nodes = []
    for item in graph.node:
        nodes += [*before, item, *after] if item.name == layer.name else [item]
    replace_nodes(graph, nodes)
    return twin


def _rounded(weights: np.ndarray, axis: int) -> np.ndarray:
    """Weights as int8 with a scale for each channel, and back."""
    others = tuple(index for index in range(weights.ndim) if index != axis)
    exact = weights.astype(np.float64)
    steps = np.abs(exact).max(axis=others, keepdims=True) / _LEVELS
    return (np.rint(exact / np.where(steps > 0, steps, 1)) * steps).astype(weights.dtype)


def _floats(values: list[np.ndarray]) -> list[np.ndarray]:
    return [value.astype(np.float64) for value in values]
