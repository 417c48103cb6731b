"""The plot of how long the session took: every sample, with quartiles and median."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from detr_export.benchmarks.plot_style import GREY
from detr_export.benchmarks.speed.plots.document import (
    Document,
    disturbed_note,
    group_title,
    groups_of,
    session_samples,
    variant_names,
    why_not_timed,
    wrong_note,
)
from detr_export.benchmarks.speed.plots.style import in_ms, rows_figure, style_of
from detr_export.benchmarks.speed.statistics import percentiles

_TAIL = 1.5  # samples beyond this many medians of the slowest variant are counted in words: they would squeeze the rest


def draw_latency(report: Document) -> Figure | None:
    """Every sample of the session, with quartiles and median."""
    groups = groups_of(report)
    if not groups:
        return None
    figure, panels = rows_figure(report, groups, "Time of one run of the session")
    for panel, (group, rows) in zip(panels, groups.items(), strict=True):
        # The scale: samples far out would squeeze the rest.
        timed = [session_samples(rows.get(name)) for name in variant_names(report)]
        centers = [float(np.median(samples)) for samples in timed if len(samples)]
        end = _TAIL * max(centers)
        limit = max(_rightmost(samples, end) for samples in timed if len(samples)) or 1.0
        for row, (name, samples) in enumerate(zip(variant_names(report), timed, strict=True)):
            if not len(samples):
                panel.text(
                    0.01 * limit, row, why_not_timed(report, rows.get(name), name), va="center", fontsize=8, color=GREY
                )
                continue
            # A row for each variant: a box from quartile to quartile, the samples, the median, and numbers.
            color = style_of(report, name)[0]
            low, middle, high, p95 = percentiles(samples, (25, 50, 75, 95))
            shown = samples[samples <= end]
            heights = row + 0.3 * (np.arange(len(samples)) * 0.618034 % 1 * 2 - 1)  # spread evenly, the same every time
            panel.barh(row, min(high, end) - low, left=low, height=0.74, color=color, alpha=0.25, linewidth=0)
            panel.plot(shown, heights[samples <= end], "o", ms=3, color=color, alpha=0.6, mew=0)
            panel.plot([middle, middle], [row - 0.37, row + 0.37], color=color, lw=2)
            beyond = len(samples) - len(shown)
            more = f", {beyond} above {in_ms(end)}" if beyond else ""
            panel.text(
                *(_rightmost(samples, end) + 0.015 * limit, row),
                f"{in_ms(middle)} (p95 {in_ms(p95)}){more}{wrong_note(rows.get(name))}{disturbed_note(rows.get(name))}",
                va="center",
                fontsize=8,
            )
        panel.set_xlim(0, 1.55 * limit)  # room for the longest of these texts
        panel.set_title(group_title(group), fontsize=9, loc="left")
        panel.set_xlabel("milliseconds: samples, quartiles and median", fontsize=8)
    return figure


def _rightmost(samples: np.ndarray, end: float) -> float:
    """Where the drawing of a row ends: at its last sample or its upper quartile, neither of them beyond `end`."""
    (high,) = percentiles(samples, (75,))
    return max(float(samples[samples <= end].max(initial=0)), min(high, end))
