"""Draws all plots of a report into a folder, each with a caption that names the machine and the software."""

from __future__ import annotations

import textwrap
from pathlib import Path

from detr_export.benchmarks.plot_style import add_caption, write_png
from detr_export.benchmarks.speed.plots.accuracy import draw_accuracy
from detr_export.benchmarks.speed.plots.breakdown import draw_breakdown
from detr_export.benchmarks.speed.plots.document import Document
from detr_export.benchmarks.speed.plots.growth import draw_growth
from detr_export.benchmarks.speed.plots.latency import draw_latency

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "transformers", "tensorrt", "numpy")  # in the caption


def draw_all(report: Document, folder: Path) -> list[Path]:
    """Draws what the report has data for, and returns the files.

    Args:
        report: `Report.to_dict()`, or `report.json` read back.
        folder: where the PNG files go; made when it is missing.

    Returns:
        Of `latency.png`, `breakdown.png`, `cost_over_size.png` (with several sizes or batches) and `accuracy.png` (with
        scores) those that were drawn; none without measurements.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = {
        "latency.png": draw_latency(report),
        "breakdown.png": draw_breakdown(report),
        "cost_over_size.png": draw_growth(report),
        "accuracy.png": draw_accuracy(report),
    }
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        add_caption(figure, caption(report))
        written.append(write_png(figure, Path(folder) / name))
    return written


def caption(report: Document) -> str:
    """The machine and the software, on lines that fit a picture."""
    about = report.get("environment") or {}
    versions = about.get("versions") or {}
    parts = [
        about.get("cpu"),
        f"{about['cores']} cores" if about.get("cores") else None,
        f"{about['threads']} threads a run" if about.get("threads") else None,
        about.get("gpu"),
        f"driver {about['driver']}" if about.get("driver") else None,
        about.get("os"),
        f"Python {about['python']}" if about.get("python") else None,
        *(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)),
        f"measured {str(report['started'])[:10]}" if report.get("started") else None,
        "INTERRUPTED before all rounds were measured" if (report.get("method") or {}).get("interrupted") else None,
    ]
    return textwrap.fill(", ".join(str(part) for part in parts if part), 150)
