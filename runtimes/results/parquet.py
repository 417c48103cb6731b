"""Rows of results as an Apache Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from detr_export.runtimes.results.rows import COLUMNS, Row

_TYPES = (pa.string(), pa.int64(), pa.string(), *[pa.float32()] * 5)
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in zip(COLUMNS, _TYPES)])


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Writes rows as a table of `SCHEMA`: text, int64 labels, float32 scores and coordinates.

    Args:
        rows: as `rows_of` makes them.
        path: the file, which is replaced.

    Raises:
        OSError: it cannot be written.
    """
    columns = list(zip(*rows)) or [()] * len(COLUMNS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), path)
