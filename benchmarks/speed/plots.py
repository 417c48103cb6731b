"""Pictures of a benchmark report: how long runs took and how much that varied, what a whole image takes, how the time grows
with the size, and what accuracy it buys.

Made from the JSON document of a report (`report.json`), so an old one can be drawn again. Variants lie one below the other,
where long names have room, and keep their colour and marker in every picture; colours are those of Okabe and Ito, which
colour-blind readers tell apart. Axes of time start at zero. What was wrong, failed, or was not measured is said in its row.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.runtimes.errors import missing_extra
from detr_export.runtimes.files import replacing, writing

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise missing_extra("matplotlib", "bench") from error

Document = Mapping[str, Any]
Group = tuple[int, int, int]  # height, width, batch

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")
_MARKERS = "osD^vPX*"
_GREY = "#595959"
_PARTS = (
    ("preprocess_ms", "preprocess", "#E69F00"),
    ("session_ms", "session", "#0072B2"),
    ("postprocess_ms", "postprocess", "#009E73"),
)
_SCORES = (("box_AP", "box AP"), ("mask_AP", "mask AP"), ("PQ", "panoptic quality (PQ)"))
_WIDTH = 9.0  # inches
_DPI = 150
_LABEL_LENGTH = 42  # characters of a variant's name
_TAIL = 1.5  # samples beyond this many medians of the slowest variant are counted in words: they would squeeze the rest
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
        "latency.png": _latency(report),
        "breakdown.png": _breakdown(report),
        "cost_over_size.png": _growth(report),
        "accuracy.png": _accuracy(report),
    }
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        figure.supxlabel(caption(report), x=0.01, ha="left", fontsize=7, color=_GREY)
        path = Path(folder) / name
        FigureCanvasAgg(figure)
        with replacing(path) as temporary, writing(path):
            figure.savefig(temporary, dpi=_DPI, format="png")
        written.append(path)
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


def short_labels(names: Sequence[str], length: int = _LABEL_LENGTH) -> dict[str, str]:
    """A label for each name, no two alike: long names lose their middle, where paths say least."""
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


def _latency(report: Document) -> Figure | None:
    """Every sample of the session, with quartiles and median."""
    groups = _groups(report)
    if not groups:
        return None
    figure, panels = _rows_figure(report, groups, "Time of one run of the session")
    for panel, (group, rows) in zip(panels, groups.items(), strict=True):
        timed = [_samples(rows.get(name)) for name in _names(report)]
        centers = [float(np.median(samples)) for samples in timed if len(samples)]
        end = _TAIL * max(centers)
        limit = max(float(samples[samples <= end].max()) for samples in timed if (samples <= end).any()) or 1.0
        for row, (name, samples) in enumerate(zip(_names(report), timed, strict=True)):
            if not len(samples):
                panel.text(0.01 * limit, row, _reason(report, rows.get(name), name), va="center", fontsize=8, color=_GREY)
                continue
            color = _style(report, name)[0]
            low, middle, high = np.percentile(samples, (25, 50, 75))
            shown = samples[samples <= end]
            heights = row + 0.3 * (np.arange(len(samples)) * 0.618034 % 1 * 2 - 1)  # spread evenly, the same every time
            panel.barh(row, high - low, left=low, height=0.74, color=color, alpha=0.25, linewidth=0)
            panel.plot(shown, heights[samples <= end], "o", ms=3, color=color, alpha=0.6, mew=0)
            panel.plot([middle, middle], [row - 0.37, row + 0.37], color=color, lw=2)
            beyond = len(samples) - len(shown)
            more = f", {beyond} above {_ms(end)}" if beyond else ""
            panel.text(
                *(max(float(shown.max(initial=0)), high) + 0.015 * limit, row),
                f"{_ms(middle)} (p95 {_ms(float(np.percentile(samples, 95)))}){more}{_wrong(rows.get(name))}",
                va="center",
                fontsize=8,
            )
        panel.set_xlim(0, 1.55 * limit)  # room for the longest of these texts
        panel.set_title(_title(group), fontsize=9, loc="left")
        panel.set_xlabel("milliseconds: samples, quartiles and median", fontsize=8)
    return figure


def _breakdown(report: Document) -> Figure | None:
    """Medians of what one image goes through, from pixels to result."""
    groups = {
        group: rows
        for group, rows in _groups(report).items()
        if any(_median(item, "preprocess_ms") or _median(item, "postprocess_ms") for item in rows.values())
    }
    if not groups:
        return None
    figure, panels = _rows_figure(report, groups, "From image to result: medians of each step")
    for panel, (group, rows) in zip(panels, groups.items(), strict=True):
        medians = {
            name: [_median(rows.get(name), key) for key, _, _ in _PARTS]
            for name in _names(report)
            if _median(rows.get(name), "session_ms") is not None
        }
        limit = max((sum(value or 0 for value in values) for values in medians.values()), default=0) or 1.0
        for row, name in enumerate(_names(report)):
            if name not in medians:
                panel.text(0.01 * limit, row, _reason(report, rows.get(name), name), va="center", fontsize=8, color=_GREY)
                continue
            left = 0.0
            for value, (_, _, color) in zip(medians[name], _PARTS, strict=True):
                if value is None:
                    continue
                panel.barh(row, value, left=left, height=0.66, color=color, edgecolor="white", linewidth=0.6)
                if value > 0.09 * limit:
                    ink = "black" if color == "#E69F00" else "white"
                    panel.text(left + value / 2, row, _number(value), ha="center", va="center", fontsize=8, color=ink)
                left += value
            whole = _median(rows.get(name), "end_to_end_ms")
            text = "" if whole is None else f"{_ms(whole)} end to end"
            panel.text(left + 0.015 * limit, row, text + _wrong(rows.get(name)), va="center", fontsize=8)
        panel.set_xlim(0, 1.3 * limit)
        panel.set_title(_title(group), fontsize=9, loc="left")
        panel.set_xlabel("milliseconds a batch" if group[2] > 1 else "milliseconds an image", fontsize=8)
    handles = [Line2D([], [], color=color, lw=6, label=label) for _, label, color in _PARTS]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _growth(report: Document) -> Figure | None:
    """The session's median over the pixels of an image, and over the images of a batch."""
    groups = _groups(report)
    sizes, batches = {group[:2] for group in groups}, {group[2] for group in groups}
    if len(sizes) < 2 and len(batches) < 2:
        return None
    # One batch size for all sizes and one size for all batches: those for which the most was measured.
    batch = max(sorted(batches), key=lambda wanted: sum(group[2] == wanted for group in groups))
    size = max(sorted(sizes), key=lambda wanted: sum(group[:2] == wanted for group in groups))
    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    count = (len(sizes) > 1) + (len(batches) > 1)
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    if len(sizes) > 1:
        panel = panels.pop(0)
        _lines(panel, report, {group[0] * group[1]: rows for group, rows in groups.items() if group[2] == batch}, 1)
        ticks = _apart(sorted((height * width, f"{height}x{width}") for height, width in sizes))
        panel.set_xticks([place for place, _ in ticks], [f"{label}\n{place / 1e6:.2g}" for place, label in ticks])
        panel.set_xlabel("size of the input, and its pixels in millions", fontsize=9)
        panel.set_ylabel(f"median session time, ms a run{'' if batch == 1 else f' of {batch} images'}", fontsize=9)
        panel.set_title(f"over sizes, batch {batch}", fontsize=9, loc="left")
    if len(batches) > 1:
        panel = panels.pop(0)
        chosen = {group[2]: rows for group, rows in groups.items() if group[:2] == size}
        _lines(panel, report, chosen, None)
        panel.set_xticks(sorted(chosen))
        panel.set_xlabel("images of a batch", fontsize=9)
        panel.set_ylabel("median session time, ms an image", fontsize=9)
        panel.set_title(f"over batches, {size[0]}x{size[1]}", fontsize=9, loc="left")
    _legend(figure, report, _names(report), "How the time grows")
    return figure


def _lines(panel: Axes, report: Document, rows_at: Mapping[int, Mapping[str, Document]], images: int | None) -> None:
    """A line a variant; time is divided by `images`, or by the batch when None."""
    for name in _names(report):
        points = [
            (place, median / (images or rows[name]["batch"]))
            for place, rows in sorted(rows_at.items())
            if (median := _median(rows.get(name), "session_ms")) is not None
        ]
        color, marker = _style(report, name)
        if points:
            panel.plot(*zip(*points, strict=True), color=color, marker=marker, ms=5, lw=1.5)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    _plain(panel, "both")


def _accuracy(report: Document) -> Figure | None:
    """Each score against the session's median, at the size at which the most variants with scores were timed."""
    groups = _groups(report)
    scored = {item["variant"]: item for item in report.get("accuracy") or ()}
    scores = [(key, label) for key, label in _SCORES if any(item.get(key) is not None for item in scored.values())]

    def timed(group: Group) -> list[str]:
        return [name for name in scored if _median(groups[group].get(name), "session_ms") is not None]

    best = max(groups, key=lambda group: len(timed(group)), default=None)
    if best is None or not scores or not timed(best):
        return None
    figure = Figure(figsize=(max(5.5, min(_WIDTH, 4.5 * len(scores))), 4.8), layout="constrained")
    for panel, (key, label) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        values = []
        for name in timed(best):
            value = scored[name].get(key)
            if value is None:
                continue
            color, marker = _style(report, name)
            values.append(value)
            panel.plot(_median(groups[best][name], "session_ms"), value, marker, color=color, ms=9, mec="white", mew=0.7)
        panel.set_xlim(0, 1.08 * panel.get_xlim()[1])
        middle, reach = (max(values) + min(values)) / 2, max(0.01, 0.65 * (max(values) - min(values)))
        panel.set_ylim(max(-0.02, middle - reach), min(1.02, middle + reach))  # or rounding would look like a difference
        panel.set_xlabel("median session time, ms", fontsize=9)
        panel.set_ylabel(f"{label}, from 0 to 1", fontsize=9)
        images = sorted({item.get("images") for item in scored.values() if item.get("images")})
        panel.set_title(f"{label}, {' and '.join(map(str, images))} images" if images else label, fontsize=9, loc="left")
        _plain(panel, "both")
    _legend(figure, report, timed(best), f"Accuracy against time, {_title(best)}")
    return figure


def _rows_figure(report: Document, groups: Mapping[Group, Any], title: str) -> tuple[Figure, list[Axes]]:
    """A panel a group, in two columns where there are many, with a row a variant."""
    names = _names(report)
    columns = 1 if len(groups) <= 3 else 2
    lines = -(-len(groups) // columns)
    height = 0.9 + lines * (0.75 + 0.36 * len(names))
    figure = Figure(figsize=(_WIDTH if columns == 1 else 1.5 * _WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel().tolist()
    for spare in grid[len(groups) :]:
        spare.set_axis_off()
    labels = short_labels(names)
    for panel in grid[: len(groups)]:
        panel.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=8)
        panel.set_ylim(len(names) - 0.4, -0.6)  # the first on top
        panel.tick_params(axis="y", length=0)
        _plain(panel, "x")
    return figure, grid[: len(groups)]


def _plain(panel: Axes, grid: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.grid(axis=grid, color="#DDDDDD", lw=0.6)
    panel.set_axisbelow(True)


def _legend(figure: Figure, report: Document, names: Sequence[str], title: str) -> None:
    """The variants above the panels, under the figure's title: one object, so that the layout keeps room for both."""
    labels = short_labels(_names(report))
    handles = []
    for name in names:
        color, marker = _style(report, name)
        wrong = any(_wrong(item) for item in report.get("measurements") or () if item["variant"] == name)
        label = labels[name] + (" (WRONG outputs)" if wrong else "")
        handles.append(Line2D([], [], color=color, marker=marker, label=label))
    legend = figure.legend(handles=handles, title=title, loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(11)


def _names(report: Document) -> list[str]:
    """All variants, in the report's order."""
    items = [item["name"] for item in report.get("variants") or ()]
    return list(dict.fromkeys([*items, *(item["variant"] for item in report.get("measurements") or ())]))


def _style(report: Document, name: str) -> tuple[str, str]:
    """Colour and marker: with more variants than colours, markers tell apart those of one colour."""
    index = _names(report).index(name)
    return _COLOURS[index % len(_COLOURS)], _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]


def _groups(report: Document) -> dict[Group, dict[str, Document]]:
    """Measurements by size and batch, then by variant; those groups in which something was timed."""
    groups: dict[Group, dict[str, Document]] = {}
    for item in report.get("measurements") or ():
        groups.setdefault((item["height"], item["width"], item["batch"]), {})[item["variant"]] = item
    return {group: rows for group, rows in groups.items() if any(len(_samples(item)) for item in rows.values())}


def _samples(item: Document | None) -> np.ndarray:
    """Finite milliseconds of the session, float64 (N,)."""
    found = ((item or {}).get("session_ms") or {}).get("samples") or ()
    values = np.array([value for value in found if value is not None], dtype=np.float64)
    return values[np.isfinite(values)]


def _median(item: Document | None, part: str) -> float | None:
    value = ((item or {}).get(part) or {}).get("p50")
    return float(value) if value is not None and np.isfinite(value) else None


def _reason(report: Document, item: Document | None, name: str) -> str:
    """Why a variant has no times, short enough for its row."""
    failed = next((variant.get("error") for variant in report.get("variants") or () if variant["name"] == name), None)
    text = (item or {}).get("error") or failed
    if text:
        return textwrap.shorten(f"failed: {text}", 80, placeholder=" …")
    return "WRONG: its outputs differ, so it was not timed" if _wrong(item) else "not measured"


def _wrong(item: Document | None) -> str:
    return ", WRONG outputs" if (item or {}).get("correct") is False else ""


def _title(group: Group) -> str:
    return f"{group[0]}x{group[1]}, batch {group[2]}"


def _ms(value: float) -> str:
    return f"{_number(value)} ms"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _apart(places: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Ticks whose labels do not touch: from the largest down, those at least an eighth of it from the one before."""
    kept: list[tuple[int, str]] = []
    for place, label in reversed(places):
        if not kept or kept[-1][0] - place >= places[-1][0] / 8:
            kept.append((place, label))
    return kept[::-1]
