"""The plot of how the session's time grows with the size of the image and with the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detr_export.benchmarks.plot_style import WIDTH, plain_axes
from detr_export.benchmarks.speed.plots.document import Document, groups_of, median_of, variant_names
from detr_export.benchmarks.speed.plots.style import add_legend, style_of


def draw_growth(report: Document) -> Figure | None:
    """The session's median over the pixels of an image, and over the images of a batch."""
    groups = groups_of(report)
    sizes, batches = {group[:2] for group in groups}, {group[2] for group in groups}
    if len(sizes) < 2 and len(batches) < 2:
        return None
    # One batch size for all sizes and one size for all batches: those for which the most was measured.
    batch = max(sorted(batches), key=lambda wanted: sum(group[2] == wanted for group in groups))
    size = max(sorted(sizes), key=lambda wanted: sum(group[:2] == wanted for group in groups))
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    count = (len(sizes) > 1) + (len(batches) > 1)
    panels = list(figure.subplots(1, count, squeeze=False)[0])

    # Over the sizes, with the time of a run.
    if len(sizes) > 1:
        panel = panels.pop(0)
        _lines(panel, report, {group[0] * group[1]: rows for group, rows in groups.items() if group[2] == batch}, 1)
        ticks = _apart(sorted((height * width, f"{height}x{width}") for height, width in sizes))
        panel.set_xticks([place for place, _ in ticks], [f"{label}\n{place / 1e6:.2g}" for place, label in ticks])
        panel.set_xlabel("size of the input, and its pixels in millions", fontsize=9)
        panel.set_ylabel(f"median session time, ms a run{'' if batch == 1 else f' of {batch} images'}", fontsize=9)
        panel.set_title(f"over sizes, batch {batch}", fontsize=9, loc="left")

    # Over the batches, with the time of an image.
    if len(batches) > 1:
        panel = panels.pop(0)
        chosen = {group[2]: rows for group, rows in groups.items() if group[:2] == size}
        _lines(panel, report, chosen, None)
        panel.set_xticks(sorted(chosen))
        panel.set_xlabel("images of a batch", fontsize=9)
        panel.set_ylabel("median session time, ms an image", fontsize=9)
        panel.set_title(f"over batches, {size[0]}x{size[1]}", fontsize=9, loc="left")
    add_legend(figure, report, variant_names(report), "How the time grows")
    return figure


def _lines(panel: Axes, report: Document, rows_at: Mapping[int, Mapping[str, Document]], images: int | None) -> None:
    """A line for each variant. The time is divided by `images`; by the batch size when that is None."""
    for name in variant_names(report):
        points = [
            (place, median / (images or rows[name]["batch"]))
            for place, rows in sorted(rows_at.items())
            if (median := median_of(rows.get(name), "session_ms")) is not None
        ]
        color, marker = style_of(report, name)
        if points:
            panel.plot(*zip(*points, strict=True), color=color, marker=marker, ms=5, lw=1.5)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    plain_axes(panel, "both")


def _apart(places: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Ticks whose labels do not touch: from the largest down, each at least an eighth of the largest from the one before."""
    kept: list[tuple[int, str]] = []
    for place, label in reversed(places):
        if not kept or kept[-1][0] - place >= places[-1][0] / 8:
            kept.append((place, label))
    return kept[::-1]
