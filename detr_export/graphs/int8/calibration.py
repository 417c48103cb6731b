"""A float graph that was run on pictures, from which int8 graphs are made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from detr_export.graphs.int8.checks import check_int8
from detr_export.graphs.int8.inserting import insert, watched_values
from detr_export.graphs.int8.layers import Layer, int8_layers, layers_of
from detr_export.graphs.int8.thresholds import threshold
from detr_export.graphs.int8.watching import Feeds, watch


@dataclass(frozen=True)
class CalibratedGraph:
    """A float graph, and all that its int8 forms need."""

    model: onnx.ModelProto  # fp32, or typed fp16
    layers: tuple[Layer, ...]  # of the scope
    thresholds: Mapping[str, float]  # the magnitudes that become 127, by value

    def int8(self, kept_float: Collection[str] = ()) -> onnx.ModelProto:
        """The int8 graph.

        Args:
            kept_float: modules of the scope whose layers stay float.

        Raises:
            ArtifactError: the graph breaks a rule of `check_int8`, or TensorRT's.
        """
        layers = int8_layers(self.layers, kept_float)
        made = insert(self.model, layers, self.thresholds)
        check_int8(made, layers)
        return made

    @property
    def always_float(self) -> dict[str, str]:
        """The modules of the scope that are never int8, with the reasons."""
        return {layer.module: layer.kept for layer in self.layers if layer.kept is not None}


def calibrate(model: onnx.ModelProto, feeds: Iterable[Feeds], scope: str, method: str) -> CalibratedGraph:
    """Runs a float graph, and finds the scales of the layers that become int8.

    Args:
        model: fp32, or typed fp16 of opset 19 or later; nodes named, in topological order, and with their modules.
        feeds: the graph's inputs for each picture; only one is held at a time.
        scope: one of `layers.SCOPES`.
        method: one of `options.METHODS`.

    Raises:
        ArtifactError: the graph has no layer of the scope.
        VerificationError: a value is not finite.
        InputError: the method is unknown.
        BackendError: ONNX Runtime cannot run the graph.
    """
    layers = layers_of(model.graph, scope)
    histograms = watch(model, watched_values(model.graph, int8_layers(layers)), feeds)
    return CalibratedGraph(model, tuple(layers), {name: threshold(item, method) for name, item in histograms.items()})
