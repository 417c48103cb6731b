"""The two Table Transformers of microsoft/table-transformer, trained on PubTables-1M: their classes and image sizes.

Source: `src/inference.py` of that repository, its class maps and its `MaxResize` of 800 and 1000 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TableModel:
    """What a file of parameters does not show."""

    id2label: Mapping[int, str]
    longest_edge: int  # pixels of an image's longer side


_DETECTION = TableModel({0: "table", 1: "table rotated"}, longest_edge=800)
_STRUCTURE = TableModel(
    {
        0: "table",
        1: "table column",
        2: "table row",
        3: "table column header",
        4: "table projected row header",
        5: "table spanning cell",
    },
    longest_edge=1000,
)
STRUCTURE_LABELS = _STRUCTURE.id2label


def table_model(num_queries: int, num_labels: int) -> TableModel | None:
    """The published model with so many queries and classes; None for others."""
    return {(15, 2): _DETECTION, (125, 6): _STRUCTURE}.get((num_queries, num_labels))
