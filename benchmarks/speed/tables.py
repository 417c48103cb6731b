"""The report for people and spreadsheets: tables on the terminal, and the files `report.md` and `report.csv`."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_export.benchmarks.speed.device_stages import STAGES
from detr_export.benchmarks.speed.report import Accuracy, Measurement, Report, Variant
from detr_export.benchmarks.speed.statistics import PARTS, Noise, Ratio, Timing
from detr_export.runtimes.errors import OutputError, missing_extra
from detr_export.runtimes.files import require_writable, write_atomically

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT_FILES = ("report.json", "report.csv", "report.md")
_MEASURED = (
    "variant",
    "size",
    "batch",
    "session p50 ms",
    "p95",
    "pre + post p50 ms",
    "end to end p50 ms",
    "ratio (spread)",
    "images/s",
    "GFLOP/s (of peak)",
    "rounds",
)
_VARIANTS = (
    "variant",
    "version",
    "precision",
    "input",
    "file MB",
    "load s",
    "first run ms",
    "peak memory MB",
    "GPU memory MB",
)
_STAGED = ("variant", "size", "batch", *(name.removesuffix("_ms").replace("_", " ") + " ms" for name in STAGES))
_ACCURACY = ("variant", "images", "box AP", "box AP50", "mask AP", "PQ", "session p50 ms")
_COMPILED = ("variant", "kernels", "attentions fused", "fp32 kernels", "casts", "copies", "weights MB", "plan MB")
_EMPTY = "-"
_NO_DIFFERENCE = "~"  # beside a ratio
_DISTURBED = "!"  # beside a time
_LEAST_SHARE = 0.005  # of the time; an operator with less has no row of its own


def terminal_tables(report: Report) -> list[RenderableType]:
    """Tables for rich: measurements, variants, scores and profiles, as far as there are any; then the remarks."""
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("rich", "bench") from error
    shown: list[RenderableType] = []
    for title, columns, rows, note in tables(report):
        table = Table(title=title, title_justify="left", title_style="bold", header_style="")
        if note:
            table.caption, table.caption_justify, table.caption_style = Text(note), "left", ""
        for index, column in enumerate(columns):  # names stay on one line; numbers give way
            table.add_column(column, justify="right" if index else "left", overflow="fold", no_wrap=index == 0)
        for row in rows:
            table.add_row(*(Text(cell, style="bold red" if cell in ("WRONG", "failed") else "") for cell in row))
        shown.append(table)
    return [*shown, Text("\n".join(remarks(report)))]


def markdown(report: Report) -> str:
    """The same as text for a README."""
    lines = [
        "# detr-bench",
        "",
        *(f"- {remark}" for remark in remarks(report)),
        *(f"- {line}" for line in report.problems()),
    ]
    for title, columns, rows, note in tables(report):
        lines += ["", f"## {title}", "", _markdown_row(columns), _markdown_row(["---"] + ["---:"] * (len(columns) - 1))]
        lines += [_markdown_row(row) for row in rows]
        lines += ["", note] if note else []
    return "\n".join(lines) + "\n"


def csv_text(report: Report) -> str:
    """A row for each variant, size and batch size, with all numbers except the samples."""
    variants = {variant.name: variant for variant in report.variants}
    rows = [_flat(item, variants[item.variant]) for item in report.measurements]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def require_report_folder(folder: Path, overwrite: bool) -> None:
    """Refuses, before anything is measured, a folder that cannot be written or holds a report.

    Raises:
        OutputError: says which file is in the way.
        BackendError: matplotlib, which draws the plots, is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "bench")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give another name")
    for name in REPORT_FILES:
        require_writable(folder / name, overwrite)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes report.json, report.csv, report.md and the plots; returns what was written.

    Raises:
        OutputError: the folder cannot be written.
    """
    texts = (report.to_json(), csv_text(report), markdown(report))
    written = [write_atomically(folder / name, text.encode()) for name, text in zip(REPORT_FILES, texts, strict=True)]
    from detr_export.benchmarks.speed.plots.drawing import draw_all

    return written + draw_all(report.to_dict(), folder)


def tables(report: Report) -> Iterator[tuple[str, Sequence[str], list[list[str]], str]]:
    """(title, columns, rows, note below) of each table that has rows. Columns without any value are left out."""
    # What was measured.
    baseline = report.method.baseline
    title = "Measurements" + (f", ratio to {baseline}" if baseline else "")
    if report.measurements:
        rows = [_measured(item) for item in report.measurements]
        keep = [index for index in range(len(_MEASURED)) if index < 3 or any(row[index] != _EMPTY for row in rows)]
        note = " ".join(filter(None, (_noise(report), _disturbed(report))))
        yield title, [_MEASURED[index] for index in keep], [[row[index] for index in keep] for row in rows], note
    if any(item.stages_ms for item in report.measurements):
        rows = [
            [item.variant, item.size, str(item.batch), *(_number(item.stages_ms[name].p50, ".2f") for name in STAGES)]
            for item in report.measurements
            if item.stages_ms
        ]
        yield "On the GPU, p50 of each step of the session", _STAGED, rows, ""
    # The variants themselves.
    if report.variants:
        rows = [_described(item) for item in report.variants]
        keep = [index for index in range(len(_VARIANTS)) if index < 2 or any(row[index] != _EMPTY for row in rows)]
        yield "Variants", [_VARIANTS[index] for index in keep], [[row[index] for index in keep] for row in rows], ""
    if report.accuracy:
        first = next((item for item in report.measurements if item.session_ms), None)
        where = f", and the session's time at {first.size}, batch {first.batch}" if first else ""
        yield f"Accuracy{where}", _ACCURACY, [_scored(item, report.measurements, first) for item in report.accuracy], ""
    # What TensorRT's compiler makes of the files.
    if report.compiled:
        yield (
            f"Compiled by {report.compiled[0]['compiler']}, first profile",
            _COMPILED,
            [
                [
                    item["variant"],
                    str(item["kernels"]),
                    f"{item['fused_attentions']} of {item['attentions']}",
                    *(str(item[name]) for name in ("fp32", "casts", "copies")),
                    *(_megabytes(item[name]) for name in ("weight_bytes", "plan_bytes")),
                ]
                for item in report.compiled
            ],
            "",
        )
    # Where the time goes.
    for profile in report.profiles:
        where = f"{profile['variant']} at {profile['height']}x{profile['width']}, batch {profile['batch']}"
        yield (
            f"Parts of {where}",
            ("part", "share"),
            [[name, f"{share:.1%}"] for name, share in profile["parts"].items()],
            "",
        )
        yield (
            f"Operators of {where}",
            ("operator", "calls", "total ms", "share"),
            [
                [item["operator"], str(item["calls"]), f"{item['total_ms']:.2f}", f"{item['share']:.1%}"]
                for item in _largest(profile["operators"])
            ],
            "",
        )


def remarks(report: Report) -> list[str]:
    """What a reader of the numbers must know."""
    environment, method = report.environment, report.method
    gigabytes = environment.memory_bytes / 2**30
    lines = [
        f"{environment.cpu}, {environment.cores} cores, {gigabytes:.0f} GiB, {environment.os}, Python {environment.python}"
        + (f", {environment.gpu} (driver {environment.driver})" if environment.gpu else "")
        + (f", governor {environment.governor}" if environment.governor else ""),
        *([f"instruction sets: {', '.join(environment.instruction_sets)}"] if environment.instruction_sets else []),
        ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
        f"{environment.threads} threads for each run; {method.rounds} rounds, in which the variants take turns; the ratio "
        "compares the session's times: the median over the rounds, and their spread; below 1 is faster",
    ]
    disturbed = sum(item.disturbed_rounds for item in report.measurements)
    if disturbed:
        total = sum(item.rounds for item in report.measurements)
        lines.append(
            f"{disturbed} of {total} turns were disturbed: the machine's speed was off its median by more than "
            f"{method.calibration_tolerance:.0%}; they do not count where at least half of a variant's turns are left"
        )
    if method.interrupted:
        lines.append("interrupted: this is what had been measured")
    return [*lines, *report.notes]


def _measured(item: Measurement) -> list[str]:
    start = [item.variant, item.size, str(item.batch)]
    if item.correct is False or item.session_ms is None:
        word = "WRONG" if item.correct is False else "failed" if item.error else _EMPTY
        return [*start, word, *[_EMPTY] * (len(_MEASURED) - 4)]
    ratio = item.ratio_to_baseline
    around = None
    if item.preprocess_ms and item.postprocess_ms:
        around = f"{item.preprocess_ms.p50:.1f} + {item.postprocess_ms.p50:.1f}"
    callers = max(item.images_per_second, key=int, default=None)
    mark = f" {_DISTURBED}" if item.disturbed else ""
    return [
        *start,
        _number(item.session_ms.p50, ".1f") + mark,
        _number(item.session_ms.p95, ".1f"),
        around or _EMPTY,
        _number(item.end_to_end_ms.p50, ".1f") + mark if item.end_to_end_ms else _EMPTY,
        _compared(ratio) if ratio else _EMPTY,
        _EMPTY
        if callers is None
        else " / ".join(
            f"{value:.2f}" for _, value in sorted(item.images_per_second.items(), key=lambda pair: int(pair[0]))
        ),
        _rate(item),
        _rounds(item),
    ]


def _compared(ratio: Ratio) -> str:
    """The session's ratio and its spread, marked where it is within the noise."""
    text = f"{ratio.session:.2f} ({ratio.session_low:.2f}-{ratio.session_high:.2f})"
    return f"{text} {_NO_DIFFERENCE}" if ratio.session_differs is False else text


def _noise(report: Report) -> str:
    """What the mark beside ratios means, at each size; or why there is none."""
    method = report.method
    if method.why_no_noise:
        return f"The noise of the ratios was not measured: {method.why_no_noise}."
    noises: dict[str, Noise | None] = {}
    for item in report.measurements:
        place = f"{item.size}, batch {item.batch}"
        noises[place] = noises.get(place) or item.noise
    if not any(noises.values()):
        return ""
    parts = []
    for place, noise in noises.items():
        amount = f"by up to {noise.session:.1%} (end to end {noise.end_to_end:.1%})" if noise else "by an unknown amount"
        parts.append(f"{amount} at {place}" if len(noises) > 1 else amount)
    return f"{_NO_DIFFERENCE} no difference: the baseline measured twice differs from itself {'; '.join(parts)}."


def _disturbed(report: Report) -> str:
    """What the mark beside times means."""
    if not any(item.disturbed for item in report.measurements):
        return ""
    return f"{_DISTURBED} more than half of its turns were disturbed, and all of them count: measure it on a quiet machine."


def _largest(operators: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The operators that matter, and the others in one row; report.json has them all."""
    shown = [item for item in operators if item["share"] >= _LEAST_SHARE]
    others = [item for item in operators if item["share"] < _LEAST_SHARE]
    if len(others) < 2:
        return list(operators)
    row = {name: sum(item[name] for item in others) for name in ("calls", "total_ms", "share")}
    return [*shown, {"operator": f"{len(others)} others", **row}]


def _rate(item: Measurement) -> str:
    """GFLOP/s, and its share of the peak where that was measured."""
    if item.work is None:
        return _EMPTY
    share = item.work.share_of_gemm_peak
    return f"{item.work.gflop_per_s:.0f} ({_EMPTY if share is None else format(share, '.0%')})"


def _rounds(item: Measurement) -> str:
    notes = [
        f"{count} {word}"
        for count, word in ((item.disturbed_rounds, "disturbed"), (item.slowed_rounds, "clocks down"))
        if count
    ]
    return str(item.rounds) + (f" ({', '.join(notes)})" if notes else "")


def _described(item: Variant) -> list[str]:
    if item.error is not None and item.load_s is None:
        return [item.name, "failed", *[_EMPTY] * (len(_VARIANTS) - 2)]
    return [
        item.name,
        item.version or _EMPTY,
        item.precision or _EMPTY,
        item.input or _EMPTY,
        _megabytes(item.file_bytes),
        _number(item.load_s, ".2f"),
        _number(item.first_inference_ms, ".0f"),
        _megabytes(item.peak_resident_bytes),
        _megabytes(item.device_memory_bytes),
    ]


def _flat(item: Measurement, variant: Variant) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": item.variant,
        "backend": variant.backend,
        "target": variant.target,
        "precision": variant.precision,
        "version": variant.version,
        "height": item.height,
        "width": item.width,
        "batch": item.batch,
        "correct": item.correct,
        "rounds": item.rounds,
        "disturbed_rounds": item.disturbed_rounds,
    }
    # Times first, then everything that is derived from them.
    for part in PARTS:
        timing: Timing | None = getattr(item, part)
        for name in ("min", "p50", "p90", "p95", "p99"):
            row[f"{part.removesuffix('_ms')}_{name}_ms"] = getattr(timing, name) if timing else None
    for name, staged in item.stages_ms.items():
        row[f"{name.removesuffix('_ms')}_p50_ms"] = staged.p50
    for callers, value in item.images_per_second.items():
        row[f"images_per_second_{callers}_callers"] = value
    ratio = item.ratio_to_baseline
    for name in ("session", "session_low", "session_high", "end_to_end", "session_differs", "end_to_end_differs"):
        row[f"ratio_{name}"] = getattr(ratio, name) if ratio else None
    for name in ("session", "end_to_end"):
        row[f"noise_{name}"] = getattr(ratio.noise, name) if ratio and ratio.noise else None
    for name in ("gmac", "moved_bytes", "gflop_per_s", "share_of_gemm_peak"):
        row[name] = getattr(item.work, name) if item.work else None
    # What is the same for all sizes of a variant.
    for field in fields(Variant):
        if field.name in ("file_bytes", "load_s", "first_inference_ms", "peak_resident_bytes", "device_memory_bytes"):
            row[field.name] = getattr(variant, field.name)
    row["error"] = item.error or variant.error
    return row


def _scored(item: Accuracy, measurements: Sequence[Measurement], first: Measurement | None) -> list[str]:
    """A row of scores, with the time at the size and batch size of `first`."""
    scores = [_number(value, ".4f") for value in (item.box_AP, item.box_AP50, item.mask_AP, item.PQ)]
    times = (
        other.session_ms.p50
        for other in measurements
        if other.session_ms and first and (other.variant, other.size, other.batch) == (item.variant, first.size, first.batch)
    )
    return [item.variant, str(item.images), *scores, _number(next(times, None), ".1f")]


def _number(value: float | None, form: str) -> str:
    return _EMPTY if value is None else format(value, form)


def _megabytes(value: int | None) -> str:
    return _EMPTY if value is None else f"{value / 1e6:.1f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
