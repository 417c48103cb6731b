"""The plot of what a whole image takes: the medians of pre-processing, session and post-processing."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detr_export.benchmarks.plot_style import GREY
from detr_export.benchmarks.speed.plots.document import (
    Document,
    disturbed_note,
    group_title,
    groups_of,
    median_of,
    variant_names,
    why_not_timed,
    wrong_note,
)
from detr_export.benchmarks.speed.plots.style import in_ms, rows_figure, short_number

_PARTS = (
    ("preprocess_ms", "preprocess", "#E69F00"),
    ("session_ms", "session", "#0072B2"),
    ("postprocess_ms", "postprocess", "#009E73"),
)


def draw_breakdown(report: Document) -> Figure | None:
    """Medians of what one image goes through, from pixels to result."""
    groups = {
        group: rows
        for group, rows in groups_of(report).items()
        if any(median_of(item, "preprocess_ms") or median_of(item, "postprocess_ms") for item in rows.values())
    }
    if not groups:
        return None
    figure, panels = rows_figure(report, groups, "From image to result: medians of each step")
    for panel, (group, rows) in zip(panels, groups.items(), strict=True):
        medians = {
            name: [median_of(rows.get(name), key) for key, _, _ in _PARTS]
            for name in variant_names(report)
            if median_of(rows.get(name), "session_ms") is not None
        }
        # A bar for each variant; the longest sets the scale.
        ends = [sum(value or 0 for value in values) for values in medians.values()]
        ends += [median_of(rows.get(name), "end_to_end_ms") or 0 for name in medians]
        limit = max(ends, default=0) or 1.0
        for row, name in enumerate(variant_names(report)):
            if name not in medians:
                panel.text(
                    0.01 * limit, row, why_not_timed(report, rows.get(name), name), va="center", fontsize=8, color=GREY
                )
                continue
            # The parts one after the other, each with its number if there is room.
            left = 0.0
            for value, (_, _, color) in zip(medians[name], _PARTS, strict=True):
                if value is None:
                    continue
                panel.barh(row, value, left=left, height=0.66, color=color, edgecolor="white", linewidth=0.6)
                if value > 0.09 * limit:
                    ink = "black" if color == "#E69F00" else "white"
                    panel.text(left + value / 2, row, short_number(value), ha="center", va="center", fontsize=8, color=ink)
                left += value
            # The whole in one go was timed on its own, so it is not the end of the bar: a line says where it is.
            whole = median_of(rows.get(name), "end_to_end_ms")
            text = in_ms(left)
            if whole is not None:
                panel.plot([whole, whole], [row - 0.42, row + 0.42], color="black", linewidth=1.2)
                text += f", in one go {in_ms(whole)}"
            text += wrong_note(rows.get(name)) + disturbed_note(rows.get(name))
            panel.text(max(left, whole or 0) + 0.015 * limit, row, text, va="center", fontsize=8)
        panel.set_xlim(0, 1.4 * limit)
        panel.set_title(group_title(group), fontsize=9, loc="left")
        panel.set_xlabel("milliseconds a batch" if group[2] > 1 else "milliseconds an image", fontsize=8)
    handles = [Line2D([], [], color=color, lw=6, label=label) for _, label, color in _PARTS]
    handles.append(Line2D([], [], color="black", lw=1.2, label="in one go"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    return figure
