"""Which batch a report of `detr-bench` speaks for: the smallest one that is nearly as fast as the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.documents import Count, Positive, read_document, typed
from detr_export.runtimes.errors import ArtifactError, InputError
from detr_export.runtimes.opening import CHECKPOINT, ENGINE, ONNX, kind_of

_NEARLY = 0.95  # of the best throughput

# What `benchmarks.speed.targets` calls the backend that a model runs in, by its kind and the kind of its device
_BACKENDS = {
    (ONNX, "cpu"): "ort",
    (ONNX, "cuda"): "ort-cuda",
    (ONNX, "tensorrt"): "ort-tensorrt",
    (ONNX, "tensorrt-rtx"): "ort-tensorrt-rtx",
    (ONNX, "openvino"): "openvino",
    (ENGINE, "cuda"): "tensorrt",
    (CHECKPOINT, "cpu"): "torch",
    (CHECKPOINT, "cuda"): "torch-cuda",
}


@dataclass(frozen=True)
class _Timing:
    p50: Positive


@dataclass(frozen=True)
class _Measurement:
    variant: str
    height: Count
    width: Count
    batch: Count
    correct: bool | None = None
    session_ms: _Timing | None = None


@dataclass(frozen=True)
class _Variant:
    name: str
    backend: str
    target: str


@dataclass(frozen=True)
class _Report:
    variants: Sequence[_Variant]
    measurements: Sequence[_Measurement]


def choose_batch(report: Path, model: str, device: str) -> int:
    """The smallest batch whose images a second are within 5 % of the best, at the largest size that has several batches.

    The throughput is that of the model alone: pictures are read and resized elsewhere.

    Args:
        report: `report.json` of detr-bench.
        model: whose file name a target of the report must have.
        device: as in `open_session`; the target's backend must be the one that runs the model there.

    Raises:
        ArtifactError: the report is missing, damaged or of another form.
        InputError: it does not have two batches of one size of this model in this backend; says how to measure them.
    """
    try:
        found = typed(read_document(report, ArtifactError), _Report, str(report), ArtifactError)
    except FileNotFoundError:
        raise ArtifactError(f"{report} does not exist: expected report.json of detr-bench; check the path") from None
    backend = _BACKENDS.get((kind_of(model), parse_device(device).kind))
    names = {
        variant.name
        for variant in found.variants
        if variant.backend == backend and PurePath(variant.target).name == PurePath(model).name
    }
    by_size: dict[tuple[int, int], dict[int, float]] = {}
    for item in found.measurements:
        if item.variant in names and item.session_ms is not None and item.correct is not False:
            rate = 1000 * item.batch / item.session_ms.p50
            rates = by_size.setdefault((item.height, item.width), {})
            rates[item.batch] = max(rate, rates.get(item.batch, 0.0))
    several = {size: rates for size, rates in by_size.items() if len(rates) > 1}
    if not several:
        raise InputError(
            f"{report} has no measurements of {PurePath(model).name} in the backend {backend} with several batches; measure "
            f"them: detr-bench {backend}:{model} --batch 1 4 16 --output DIR"
        )
    return _knee(several[max(several, key=lambda size: size[0] * size[1])])


def _knee(rates: Mapping[int, float]) -> int:
    best = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= _NEARLY * best)
