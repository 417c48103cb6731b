"""Measures files: latency, accuracy and parity. `detr_export.benchmarks.run` is the whole benchmark in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr_export.benchmarks.speed.run import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    if name == "run":  # on demand: scoring a file needs nothing that the benchmark imports
        from detr_export.benchmarks.speed.run import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
