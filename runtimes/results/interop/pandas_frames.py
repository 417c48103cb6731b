"""Results as a `pandas.DataFrame`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas


def frame_of(columns: Mapping[str, tuple[type, Sequence[Any]]]) -> pandas.DataFrame:
    """A table of columns, each with its type and its values: int64, float32, bool, and text as pandas keeps text."""
    return pandas.DataFrame({name: _column(kind, values) for name, (kind, values) in columns.items()})


def _column(kind: type, values: Sequence[Any]) -> pandas.Series:
    if kind is str:
        return pandas.Series(list(values), dtype="str")
    return pandas.Series(np.array(values, dtype=kind))
