"""What plots read from the JSON document of a report. Documents with parts missing are read as far as they go."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

Document = Mapping[str, Any]
Group = tuple[int, int, int]  # height, width, batch


def variant_names(report: Document) -> list[str]:
    """All variants, in the report's order."""
    items = [item["name"] for item in report.get("variants") or ()]
    return list(dict.fromkeys([*items, *(item["variant"] for item in report.get("measurements") or ())]))


def groups_of(report: Document) -> dict[Group, dict[str, Document]]:
    """Measurements by size and batch, then by variant; only groups in which something was timed."""
    groups: dict[Group, dict[str, Document]] = {}
    for item in report.get("measurements") or ():
        groups.setdefault((item["height"], item["width"], item["batch"]), {})[item["variant"]] = item
    return {group: rows for group, rows in groups.items() if any(len(session_samples(item)) for item in rows.values())}


def session_samples(item: Document | None) -> np.ndarray:
    """Milliseconds of the session as far as they are finite, float64 (N,)."""
    found = ((item or {}).get("session_ms") or {}).get("samples") or ()
    values = np.array([value for value in found if value is not None], dtype=np.float64)
    return values[np.isfinite(values)]


def median_of(item: Document | None, part: str) -> float | None:
    value = ((item or {}).get(part) or {}).get("p50")
    return float(value) if value is not None and np.isfinite(value) else None


def why_not_timed(report: Document, item: Document | None, name: str) -> str:
    """Why a variant has no times, short enough for its row."""
    failed = next((variant.get("error") for variant in report.get("variants") or () if variant["name"] == name), None)
    text = (item or {}).get("error") or failed
    if text:
        return textwrap.shorten(f"failed: {text}", 80, placeholder=" …")
    return "WRONG: its outputs differ, so it was not timed" if wrong_note(item) else "not measured"


def wrong_note(item: Document | None) -> str:
    return ", WRONG outputs" if (item or {}).get("correct") is False else ""


def disturbed_note(item: Document | None) -> str:
    """Said of times that hold disturbed turns, because more than half of its turns were."""
    about = item or {}
    return ", disturbed" if 2 * (about.get("disturbed_rounds") or 0) > (about.get("rounds") or 0) else ""


def group_title(group: Group) -> str:
    return f"{group[0]}x{group[1]}, batch {group[2]}"
