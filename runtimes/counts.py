"""Counts, in the order in which people want to read them."""

from __future__ import annotations

from collections.abc import Mapping


def most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names with their counts, the largest count first; names of one count by the alphabet."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
