"""An int8 file on its way: it can be written again with more layers in float."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import onnx

from detr_export.graphs.int8.calibration import CalibratedGraph, calibrate
from detr_export.graphs.int8.layers import int8_layers
from detr_export.graphs.int8.options import Int8Options
from detr_export.graphs.int8.pictures import PictureFeeds
from detr_export.graphs.int8.sensitivity import PICTURES, LayerSensitivity, rank_layers
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.metadata import Quantization
from detr_export.runtimes.progress import SILENT, Progress

LOST = "with it in int8 the file lost too much accuracy"


@dataclass(frozen=True)
class Int8Report:
    """What int8 did to a model."""

    quantization: Quantization
    layers: int  # how many are int8
    sensitivity: tuple[LayerSensitivity, ...] = ()  # of every layer, the worst first; empty if nobody asked

    def summary(self) -> str:
        """For people."""
        about = self.quantization
        lines = [
            f"{self.layers} layers are int8, calibrated on {about.images} pictures by {about.method}, the rest is "
            f"{about.float_precision}"
        ]
        lines += [f"  float: {module}, {reason}" for module, reason in about.kept_float.items()]
        if self.sensitivity:
            lines.append("what each layer alone does to the outputs, the worst first:")
            lines += [f"  {item.summary()}" for item in self.sensitivity]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "quantization": asdict(self.quantization),
            "layers": self.layers,
            "sensitivity": [item.to_dict() for item in self.sensitivity],
        }


def draft_int8(model: onnx.ModelProto, runner: ImageRunner, options: Int8Options, progress: Progress = SILENT) -> Int8Draft:
    """Calibrates a float graph.

    Args:
        model: as in `calibration.calibrate`.
        runner: turns pictures into the graph's inputs.
        options: on which pictures, and how.
        progress: is told each picture.

    Raises:
        DetrError: as `calibration.calibrate`; ImageError, too, for a picture that the processor refuses.
    """

    def feeds(count: int, note: str = "") -> PictureFeeds:
        return PictureFeeds(runner, options.pictures[:count], progress if note else SILENT, note)

    progress.stage(f"calibrating on {len(options.pictures)} pictures")
    calibrated = calibrate(model, feeds(len(options.pictures), "calibrating"), options.scope, options.method)
    about = Quantization(
        scope=options.scope,
        method=options.method,
        images=len(options.pictures),
        float_precision=options.float_precision,
        kept_float=calibrated.always_float,
    )
    return Int8Draft(calibrated, feeds, about, progress)


@dataclass
class Int8Draft:
    """A calibrated graph whose int8 form is being settled."""

    calibrated: CalibratedGraph
    feeds: Callable[[int], PictureFeeds]  # the first so many calibration pictures
    quantization: Quantization
    progress: Progress = SILENT
    _ranking: tuple[LayerSensitivity, ...] = field(default=(), repr=False)
    _graph: onnx.ModelProto | None = field(default=None, repr=False)

    def graph(self) -> onnx.ModelProto:
        """The int8 graph as it is settled now.

        Raises:
            ArtifactError: as `CalibratedGraph.int8`.
        """
        if self._graph is None:
            self._graph = self.calibrated.int8(self.quantization.kept_float.keys())
        return self._graph

    def ranking(self) -> tuple[LayerSensitivity, ...]:
        """What each layer costs, the worst first; measured once."""
        if not self._ranking:
            self.progress.stage("measuring what each layer costs")
            self._ranking = tuple(rank_layers(self.calibrated, self.feeds(PICTURES), self.progress))
        return self._ranking

    def keep_next(self, count: int) -> list[str]:
        """Keeps that many more layers float, those that cost most.

        Returns:
            Their modules; fewer than `count` when fewer are left, and never the last one.
        """
        kept = self.quantization.kept_float
        modules = list(dict.fromkeys(item.module for item in self.ranking() if item.module not in kept))
        chosen = modules[: min(count, len(modules) - 1)]
        self._keep(chosen)
        return chosen

    def score(self, accuracy: Mapping[str, Any]) -> None:
        """Records the scores of the file as it is settled."""
        self.quantization = replace(self.quantization, accuracy=accuracy)

    def report(self, with_sensitivity: bool) -> Int8Report:
        """What was made."""
        layers = int8_layers(self.calibrated.layers, self.quantization.kept_float.keys())
        return Int8Report(self.quantization, len(layers), self.ranking() if with_sensitivity else self._ranking)

    def _keep(self, modules: list[str]) -> None:
        kept = {**self.quantization.kept_float, **dict(zip(modules, itertools.repeat(LOST), strict=False))}
        self.quantization = replace(self.quantization, kept_float=kept)
        self._graph = None
