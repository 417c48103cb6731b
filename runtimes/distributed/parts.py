"""The third stage: rows become files of the table. A file is whole or not there, and says which rows it has.

So a run that goes on needs no other record: what the files have is done. Ray Data's own `CheckpointConfig` is not used: it
keeps the identities of all rows in memory, and a row that was written and not yet recorded comes twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detr_export.runtimes.distributed.job import Job
from detr_export.runtimes.distributed.manifest import require_current
from detr_export.runtimes.errors import OutputError, first_line
from detr_export.runtimes.files import replacing, writing

FOLDER = "predictions"
_RANGES = b"detr_export.rows"  # key of a file's metadata: [[first, stop], ...]
_SHOWN = 20  # errors of one part that the driver may print

Range = tuple[int, int]  # the first row, and the one after the last
SUMMARY = pa.schema(
    [
        ("pictures", pa.int64()),
        ("failed", pa.int64()),
        ("objects", pa.string()),  # JSON: how many of each class
        ("errors", pa.list_(pa.string())),  # texts of the first ones
    ]
)


def write_part(results: pa.Table, job: Job) -> pa.Table:
    """Writes rows as one file.

    The name follows from the rows. So a task that runs again, because its worker was killed, replaces its own file.

    Args:
        results: of `model.RESULT`.
        job: the run.

    Returns:
        A table of `SUMMARY` with one row.

    Raises:
        OutputError: it cannot be written, or the driver has started anew since.
    """
    job.enter()
    require_current(job.output, job.token)
    records = sorted(results.to_pylist(), key=lambda record: int(record["first"]))
    table = pa.concat_tables([pa.ipc.open_stream(record["rows"]).read_all() for record in records])
    _write(table, [(record["first"], record["stop"]) for record in records], job.output / FOLDER)
    return pa.Table.from_pylist([_summary(table)], SUMMARY)


def finished_rows(folder: Path, total: int) -> np.ndarray:
    """Which rows the files have: bool (total,).

    A row that two files have leaves the later one. That can be if a driver was killed, and one of its workers was just
    about to move its file into place.

    Raises:
        OutputError: a file is damaged, has rows that the list does not have, or cannot be written anew.
    """
    done = np.zeros(total, dtype=bool)
    for path in part_files(folder):
        ranges = ranges_of(path)
        if any(not 0 <= first < stop <= total for first, stop in ranges):
            raise OutputError(f"{path} has rows that the run does not have; add --overwrite to begin anew")
        if any(done[first:stop].any() for first, stop in ranges):
            ranges = _without(path, done)
        for first, stop in ranges:
            done[first:stop] = True
    return done


def part_files(folder: Path) -> list[Path]:
    """The files of the table, by their first rows."""
    return sorted(folder.glob("part-*.parquet"))


def ranges_of(path: Path) -> list[Range]:
    """Which rows a file has.

    Raises:
        OutputError: it is damaged, or none of ours.
    """
    try:
        return [(int(first), int(stop)) for first, stop in json.loads(pq.read_metadata(path).metadata[_RANGES])]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{path} is not a part of a run: {first_line(error):.200}; remove it, and its rows are made again"
        ) from error


def missing_ranges(done: np.ndarray) -> Iterator[Range]:
    """The rows that are not done, in ranges without a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


def count_results(paths: Iterable[Path]) -> tuple[int, int, Counter[str]]:
    """How many pictures some files have, how many of them have an error, and how many objects of each class there are."""
    pictures, failed, objects = 0, 0, Counter[str]()
    for path in paths:
        table = pq.read_table(path, columns=["names", "error"])
        pictures += len(table)
        failed += len(table) - table["error"].null_count
        objects.update(_objects(table))
    return pictures, failed, objects


def _without(path: Path, done: np.ndarray) -> list[Range]:
    """Writes a file anew without rows that others have; returns which it still has."""
    table = pq.read_table(path)
    kept = table.filter(pa.array(~done[table["row"].to_numpy()]))
    rest = np.ones_like(done)
    rest[kept["row"].to_numpy()] = False
    ranges = [*missing_ranges(rest)]
    if ranges:
        _write(kept.replace_schema_metadata(table.schema.metadata), ranges, path.parent)
    with writing(path):
        path.unlink()
    return ranges


def _write(table: pa.Table, ranges: Sequence[Range], folder: Path) -> None:
    text = json.dumps(_joined(ranges))
    path = folder / f"part-{ranges[0][0]:012d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet"
    described = table.replace_schema_metadata({**(table.schema.metadata or {}), _RANGES: text.encode()})
    with replacing(path) as temporary, writing(path):
        pq.write_table(described, temporary)


def _joined(ranges: Sequence[Range]) -> list[Range]:
    joined: list[Range] = []
    for first, stop in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((first, stop))
    return joined


def _summary(table: pa.Table) -> dict[str, object]:
    failed = len(table) - table["error"].null_count
    return {
        "pictures": len(table),
        "failed": failed,
        "objects": json.dumps(_objects(table)),
        "errors": table["error"].drop_null().slice(0, _SHOWN).to_pylist(),
    }


def _objects(table: pa.Table) -> Counter[str]:
    return Counter(name for names in table["names"].to_pylist() for name in names or ())
