"""Draws confusion matrices and curves of precision over recall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detr_export.benchmarks.accuracy.confusion import IOU, THRESHOLD, ConfusionMatrix
from detr_export.benchmarks.accuracy.curves import RECALLS, ClassCurve, Curves
from detr_export.benchmarks.plot_style import COLOURS, GREY, WIDTH, add_caption, plain_axes

# Inches of a cell, points of labels and points of numbers, up to so many rows.
_CELLS = ((3, 1.4, 9, 10), (6, 0.9, 9, 9), (14, 0.5, 8, 8), (30, 0.34, 7, 6), (10**6, 0.22, 6, 4.2))
_BLACK = "#000000"
_COLOURED = tuple(colour for colour in COLOURS if colour != _BLACK)  # the mean is black
_NAMED = 5  # classes with the lowest AP that are named where there are more classes than colours
_NAME_LENGTH = 28  # characters of a class's name


def draw_confusion(matrix: ConfusionMatrix, what: str) -> Figure:
    """A cell for each pair of classes that occur: a number of objects, its colour the share of the row.

    Args:
        matrix: of any classes; those that do not occur are left out.
        what: "boxes" or "masks".
    """
    shown = matrix.occurring()
    labels = [_shortened(label) for label in shown.labels]
    rows = len(labels)
    cell, label_size, number_size = next(sizes for most, *sizes in _CELLS if rows <= most)
    extent = max(map(len, labels)) * 0.0092 * label_size + 0.1  # of the longest label, about
    upright = extent < cell
    side = cell * rows
    size = (max(side + extent + 1.2, 5.6), side + (0.25 if upright else extent) + 0.95)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"What is taken for what: {what}", fontsize=max(11, side), x=0.01, ha="left")
    panel = figure.subplots()

    # Colours: each row is shared out. Nothing that is detected as nothing is not counted, so that cell is grey.
    sums = shown.counts.sum(axis=1, keepdims=True)
    shares = np.ma.array(shown.counts / np.maximum(sums, 1), mask=np.zeros(shown.counts.shape, dtype=bool))
    shares[-1, -1] = np.ma.masked
    panel.set_facecolor("#E6E6E6")
    picture = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    colorbar = figure.colorbar(picture, ax=panel, fraction=min(0.04, 0.25 / side), pad=0.02)
    colorbar.set_label("share of the row", fontsize=8)
    colorbar.ax.tick_params(labelsize=7)

    # Numbers, and lines between all cells and around nothing.
    for row, column in np.argwhere(shown.counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        text = str(shown.counts[row, column])
        panel.text(column, row, text, ha="center", va="center", fontsize=number_size, color=colour)
    panel.set_xticks(range(rows), labels, fontsize=label_size, rotation=0 if upright else 90, parse_math=False)
    panel.set_yticks(range(rows), labels, fontsize=label_size, parse_math=False)
    panel.set_xticks(np.arange(rows + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="#DDDDDD", lw=0.5)
    panel.tick_params(which="both", length=0)
    panel.axhline(rows - 1.5, color=GREY, lw=1)
    panel.axvline(rows - 1.5, color=GREY, lw=1)
    panel.set_xlabel("predicted", fontsize=9)
    panel.set_ylabel("annotated", fontsize=9)
    about = f"Detections with a score above {THRESHOLD:g}, matched at an IoU of {IOU:g} whatever their class."
    left_out = len(matrix.names) - len(shown.names)
    add_caption(figure, about + (f"\nClasses that do not occur are left out: {left_out}." if left_out else ""))
    return figure


def draw_curves(found: Curves, what: str) -> Figure:
    """Precision over recall, at IoU .50 and averaged over IoUs: a line for each class, a black one for their mean.

    Args:
        found: the curves. With more classes than colours those with the lowest AP are coloured, and the rest is grey.
        what: "boxes" or "masks".
    """
    many = len(found.classes) > len(_COLOURED)
    coloured = sorted(found.classes, key=lambda item: item.ap)[:_NAMED] if many else found.classes
    figure = Figure(figsize=(1.25 * WIDTH, 4.6), layout="constrained")
    figure.suptitle(f"Precision over recall: {what}", fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, title in zip(panels, ("at IoU .50", "mean over the IoUs .50, .55, ..., .95"), strict=True):
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_xlabel("recall", fontsize=9)
        panel.set_xlim(0, 1.01)
        panel.set_ylim(0, 1.03)
        plain_axes(panel, "both")
    panels[0].set_ylabel("precision", fontsize=9)
    if found.mean is None:
        panels[0].text(0.5, 0.5, "nothing is annotated", ha="center", fontsize=9, color=GREY)
        return figure

    # The lines: the mean on top.
    if many:
        for item in found.classes:
            _draw_class(panels, item, "#C4C4C4", 0.6)
    for item, colour in zip(coloured, _COLOURED, strict=False):
        _draw_class(panels, item, colour, 1.4)
    if len(found.classes) > 1:
        _draw_class(panels, found.mean, _BLACK, 2.2)
    for item, colour in zip(coloured, _COLOURED, strict=False):
        if item.best is not None:
            panels[0].plot(item.best.recall, item.best.precision, "o", ms=6, color=colour, mec="white", zorder=4)

    # The legend: both areas, and the name.
    handles = [_entry(item, colour) for item, colour in zip(coloured, _COLOURED, strict=False)]
    if len(found.classes) > 1:
        handles.insert(0, _entry(found.mean, _BLACK))
    if many:
        handles.append(Line2D([], [], color="#C4C4C4", label=f"the other {len(found.classes) - len(coloured)}"))
    title = "AP50  AP  class" + (f"; the {len(coloured)} with the lowest AP" if many else "")
    legend = figure.legend(handles=handles, title=title, loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(8)
    add_caption(
        figure, "The area below a line is the AP. A dot is the best F1, at the score threshold in the table of thresholds."
    )
    return figure


def _draw_class(panels: Sequence[Axes], item: ClassCurve, colour: str, width: float) -> None:
    for panel, precision in zip(panels, (item.precision_50, item.precision), strict=True):
        panel.plot(RECALLS, precision, color=colour, lw=width)


def _entry(item: ClassCurve, colour: str) -> Line2D:
    return Line2D([], [], color=colour, label=f"{item.ap_50:.3f}  {item.ap:.3f}  {_shortened(item.name)}")


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
