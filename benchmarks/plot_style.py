"""How all plots look, and how they are written. The colours are those of Okabe and Ito, which colour-blind readers can tell
apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detr_export.runtimes.files import replacing, writing

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")
GREY = "#595959"
WIDTH = 9.0  # inches
_DPI = 150


def plain_axes(panel: Axes, grid: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.grid(axis=grid, color="#DDDDDD", lw=0.6)
    panel.set_axisbelow(True)


def add_caption(figure: Figure, text: str) -> None:
    """Small grey text below the panels."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=GREY)


def write_png(figure: Figure, path: Path) -> Path:
    """Writes a figure in one move.

    Raises:
        OutputError: the file cannot be written.
    """
    FigureCanvasAgg(figure)
    with replacing(path) as temporary, writing(path):
        figure.savefig(temporary, dpi=_DPI, format="png")
    return path
