"""The result of an evaluation: the scores of one model or two, as numbers, JSON and plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from detr_export.benchmarks.accuracy.detection_evaluator import CocoScores
from detr_export.benchmarks.accuracy.panoptic_evaluator import PanopticScores
from detr_export.benchmarks.text_table import aligned

Metrics = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class ModelAccuracy:
    """One model and its scores."""

    model: str  # the path or name that was given; of an open model, the name of its checkpoint
    task: str  # "detection" or "segmentation"
    sha256: str | None  # of the file; None for a folder, a hub id, and a model that was open already
    source: Mapping[str, str]  # name and sha256 of the weights, as the model's metadata has them
    coco: CocoScores
    panoptic: PanopticScores | None

    def metrics(self) -> Metrics:
        """The scores of the whole set, each in [0, 1], by `box`, `mask` and `panoptic` as far as they were scored."""
        found: Metrics = {}
        for name, scores in (("box", self.coco.bbox), ("mask", self.coco.segm)):
            if scores is not None:
                found[name] = asdict(scores.metrics)
        if self.panoptic is not None:
            parts = (("", self.panoptic.all), ("_things", self.panoptic.things), ("_stuff", self.panoptic.stuff))
            found["panoptic"] = {
                f"{name.upper()}{suffix}": getattr(part, name) for suffix, part in parts for name in ("pq", "sq", "rq")
            }
        return found

    def per_class(self) -> dict[str, Any]:
        """AP by class under `box` and `mask`; under `panoptic`, a row for each class."""
        found: dict[str, Any] = {}
        for name, scores in (("box", self.coco.bbox), ("mask", self.coco.segm)):
            if scores is not None:
                found[name] = dict(scores.per_class)
        if self.panoptic is not None:
            found["panoptic"] = [asdict(row) for row in self.panoptic.per_class]
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "task": self.task,
            "sha256": self.sha256,
            "source": dict(self.source),
            "metrics": self.metrics(),
            "per_class": self.per_class(),
        }


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    accuracy: ModelAccuracy
    reference: ModelAccuracy | None  # of `against`
    images: int
    annotations: str
    panoptic_threshold: float | None  # None without a panoptic evaluation
    batch: int
    device: str
    notes: tuple[str, ...] = ()
    plots: str | None = None  # the folder that they were written to
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that are installed, and of Python

    def difference(self) -> Metrics | None:
        """Model minus reference for each metric, None where one of them has none; None without a reference."""
        if self.reference is None:
            return None
        theirs = self.reference.metrics()
        return {
            kind: {name: _minus(value, theirs[kind][name]) for name, value in values.items()}
            for kind, values in self.accuracy.metrics().items()
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the model's own keys, `reference` with the same ones, `difference`, and how it was measured."""
        return {
            **self.accuracy.to_dict(),
            "reference": None if self.reference is None else self.reference.to_dict(),
            "difference": self.difference(),
            "images": self.images,
            "annotations": self.annotations,
            "panoptic_threshold": self.panoptic_threshold,
            "batch": self.batch,
            "device": self.device,
            "notes": list(self.notes),
            "plots": self.plots,
            "versions": dict(self.versions),
        }

    def summary(self) -> str:
        """Two tables in plain text: a row for each metric, and a row for each class in the annotations or predictions."""
        threshold = "" if self.panoptic_threshold is None else f", panoptic threshold {self.panoptic_threshold:g}"
        lines = [f"{self.accuracy.model}: {self.images} images{threshold}"]
        if self.reference is not None:
            lines.append(f"reference: {self.reference.model}")
        lines += [f"note: {note}" for note in self.notes]
        if self.plots is not None:
            lines.append(f"plots: {self.plots}")
        return "\n".join([*lines, "", *aligned(self._metric_rows()), "", *aligned(self._class_rows())])

    def _metric_rows(self) -> list[list[str]]:
        difference = self.difference()
        rows = [["metric", "model", *([] if difference is None else ["reference", "difference"])]]
        for kind, values in self.accuracy.metrics().items():
            for name, value in values.items():
                row = [f"{kind} {name.replace('_', ' ')}", _number(value)]
                if self.reference is not None and difference is not None:
                    row += [_number(self.reference.metrics()[kind][name]), _number(difference[kind][name], "+.5f")]
                rows.append(row)
        return rows

    def _class_rows(self) -> list[list[str]]:
        """Columns of the model's scores. A class is in the table when it has a score."""
        columns: dict[str, Mapping[str, float | None]] = {}
        coco, panoptic = self.accuracy.coco, self.accuracy.panoptic
        for title, scores in (("box AP", coco.bbox), ("mask AP", coco.segm)):
            if scores is not None:
                columns[title] = scores.per_class
        if panoptic is not None:
            columns |= {
                key.upper(): {row.name: getattr(row, key) for row in panoptic.per_class} for key in ("pq", "sq", "rq")
            }
        names = list(
            dict.fromkeys(name for column in columns.values() for name, value in column.items() if value is not None)
        )
        return [
            ["class", *columns],
            *([name, *(_number(column.get(name)) for column in columns.values())] for name in names),
        ]


def _minus(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
