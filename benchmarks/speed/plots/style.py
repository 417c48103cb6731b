"""How variants look in plots: colours, labels, rows and legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detr_export.benchmarks.plot_style import COLOURS, WIDTH, plain_axes
from detr_export.benchmarks.speed.plots.document import Document, Group, variant_names, wrong_note

_MARKERS = "osD^vPX*"
_LABEL_LENGTH = 42  # characters of a variant's name


def short_labels(names: Sequence[str], length: int = _LABEL_LENGTH) -> dict[str, str]:
    """A label for each name, no two of them alike. Long names lose their middle, where paths say least."""
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        label = name
        if len(name) > length:
            backend, colon, target = name.partition(":")
            head, rest = (backend + colon, target) if colon and len(backend) < length // 2 else ("", name)
            tail = rest[len(head) + 1 - length :]
            label = f"{head}…{tail[tail.find('/') :] if '/' in tail else tail}"
        number = 2
        while label in labels.values():
            label, number = f"{label.partition(' (')[0]} ({number})", number + 1
        labels[name] = label
    return labels


def style_of(report: Document, name: str) -> tuple[str, str]:
    """Colour and marker of a variant. With more variants than colours, markers tell apart those of one colour."""
    index = variant_names(report).index(name)
    return COLOURS[index % len(COLOURS)], _MARKERS[(index + index // len(COLOURS)) % len(_MARKERS)]


def rows_figure(report: Document, groups: Mapping[Group, Any], title: str) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each group, in two columns where there are many, and a row for each variant."""
    names = variant_names(report)
    columns = 1 if len(groups) <= 3 else 2
    lines = -(-len(groups) // columns)
    height = 0.9 + lines * (0.75 + 0.36 * len(names))
    figure = Figure(figsize=(WIDTH if columns == 1 else 1.5 * WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel().tolist()
    for spare in grid[len(groups) :]:
        spare.set_axis_off()
    labels = short_labels(names)
    for panel in grid[: len(groups)]:
        panel.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=8)
        panel.set_ylim(len(names) - 0.4, -0.6)  # the first on top
        panel.tick_params(axis="y", length=0)
        plain_axes(panel, "x")
    return figure, grid[: len(groups)]


def add_legend(figure: Figure, report: Document, names: Sequence[str], title: str) -> None:
    """The variants above the panels, under the title. Both are one object, so that the layout keeps room for them."""
    labels = short_labels(variant_names(report))
    handles = []
    for name in names:
        color, marker = style_of(report, name)
        wrong = any(wrong_note(item) for item in report.get("measurements") or () if item["variant"] == name)
        label = labels[name] + (" (WRONG outputs)" if wrong else "")
        handles.append(Line2D([], [], color=color, marker=marker, label=label))
    legend = figure.legend(handles=handles, title=title, loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(11)


def in_ms(value: float) -> str:
    return f"{short_number(value)} ms"


def short_number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
