"""The plot of what accuracy the time buys."""

from __future__ import annotations

from matplotlib.figure import Figure

from detr_export.benchmarks.plot_style import WIDTH, plain_axes
from detr_export.benchmarks.speed.plots.document import Document, Group, group_title, groups_of, median_of
from detr_export.benchmarks.speed.plots.style import add_legend, style_of

_SCORES = (("box_AP", "box AP"), ("mask_AP", "mask AP"), ("PQ", "panoptic quality (PQ)"))


def draw_accuracy(report: Document) -> Figure | None:
    """Each score against the session's median, at the size at which the most variants with scores were timed."""
    groups = groups_of(report)
    scored = {item["variant"]: item for item in report.get("accuracy") or ()}
    scores = [(key, label) for key, label in _SCORES if any(item.get(key) is not None for item in scored.values())]

    def timed(group: Group) -> list[str]:
        return [name for name in scored if median_of(groups[group].get(name), "session_ms") is not None]

    # Draw at one size only; without scores or times there is nothing to draw.
    best = max(groups, key=lambda group: len(timed(group)), default=None)
    if best is None or not scores or not timed(best):
        return None

    # A panel for each score, a point for each variant.
    figure = Figure(figsize=(max(5.5, min(WIDTH, 4.5 * len(scores))), 4.8), layout="constrained")
    for panel, (key, label) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        values = []
        for name in timed(best):
            value = scored[name].get(key)
            if value is None:
                continue
            color, marker = style_of(report, name)
            values.append(value)
            panel.plot(median_of(groups[best][name], "session_ms"), value, marker, color=color, ms=9, mec="white", mew=0.7)
        panel.set_xlim(0, 1.08 * panel.get_xlim()[1])
        middle, reach = (max(values) + min(values)) / 2, max(0.01, 0.65 * (max(values) - min(values)))
        panel.set_ylim(max(-0.02, middle - reach), min(1.02, middle + reach))  # or rounding would look like a difference
        panel.set_xlabel("median session time, ms", fontsize=9)
        panel.set_ylabel(f"{label}, from 0 to 1", fontsize=9)
        images = sorted({item.get("images") for item in scored.values() if item.get("images")})
        panel.set_title(f"{label}, {' and '.join(map(str, images))} images" if images else label, fontsize=9, loc="left")
        plain_axes(panel, "both")
    add_legend(figure, report, timed(best), f"Accuracy against time, {group_title(best)}")
    return figure
