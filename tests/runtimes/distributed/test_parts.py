"""What a run keeps in its folder: which rows are done, and what happens where a disk is full or a file is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detr_export.runtimes.distributed import manifest, parts, schema
from detr_export.runtimes.distributed.job import Job, ModelOptions, Work, surroundings
from detr_export.runtimes.distributed.model import RESULT
from detr_export.runtimes.distributed.schema import row_of, table_of
from detr_export.runtimes.errors import OutputError
from tests.hostile.test_disk import full_disk


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run that was begun."""
    request = manifest.Request(
        schema.VERSION, "a", "detection", 0.5, None, True, 1, "cpu", None, False, False, ["x"], None
    )  # fmt: skip
    manifest.write_manifest(tmp_path, manifest.Manifest(request, 100, {"0": "a"}, "1", "now"))
    return Job(tmp_path, "now", Work(), ModelOptions("m"), None, *surroundings())


def result(first: int, stop: int) -> pa.Table:
    """What the second stage gives for rows that are all errors."""
    rows = [row_of(number, f"{number}.jpg", "a", None, "broken") for number in range(first, stop)]
    sink = pa.BufferOutputStream()
    table = table_of(rows, "detection")
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pa.Table.from_pylist([{"first": first, "stop": stop, "rows": sink.getvalue().to_pybytes()}], RESULT)


def test_missing_ranges() -> None:
    done = np.zeros(10, dtype=bool)
    assert [*parts.missing_ranges(done)] == [(0, 10)]
    done[[0, 4, 5, 9]] = True
    assert [*parts.missing_ranges(done)] == [(1, 4), (6, 9)]
    assert [*parts.missing_ranges(np.ones(3, dtype=bool))] == []


def test_a_task_that_runs_twice_writes_one_file(job: Job) -> None:
    for _ in range(2):
        (summary,) = parts.write_part(pa.concat_tables([result(20, 30), result(0, 10)]), job).to_pylist()
    assert (summary["pictures"], summary["failed"]) == (20, 20)
    (file,) = parts.part_files(job.output / parts.FOLDER)
    assert parts.ranges_of(file) == [(0, 10), (20, 30)]
    assert np.flatnonzero(parts.finished_rows(job.output / parts.FOLDER, 100)).tolist() == [*range(10), *range(20, 30)]


def test_rows_that_two_files_have_leave_one(job: Job) -> None:
    for first, stop in ((0, 10), (5, 15), (6, 9)):
        parts.write_part(result(first, stop), job)
    folder = job.output / parts.FOLDER
    assert np.flatnonzero(parts.finished_rows(folder, 100)).tolist() == [*range(15)]
    files = parts.part_files(folder)
    assert [row for file in files for row in pq.read_table(file)["row"].to_pylist()] == [*range(15)]
    assert all(pq.read_schema(file).metadata[b"detr_export.schema"] == b"1" for file in files)


def test_a_full_disk(job: Job) -> None:
    parts.write_part(result(0, 10), job)
    folder = job.output / parts.FOLDER
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with full_disk(), pytest.raises(OutputError, match=rf"cannot write {folder}/part-.*: .*File too large"):
        parts.write_part(result(10, 20), job)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    parts.write_part(result(10, 20), job)
    assert parts.finished_rows(folder, 100).sum() == 20


def test_a_damaged_file(job: Job) -> None:
    folder = job.output / parts.FOLDER
    parts.write_part(result(0, 10), job)
    (file,) = parts.part_files(folder)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"is not a part of a run: .*; remove it, and its rows are made again"):
        parts.finished_rows(folder, 100)
    file.unlink()
    parts.write_part(result(95, 105), job)
    with pytest.raises(OutputError, match="has rows that the run does not have"):
        parts.finished_rows(folder, 100)


def test_a_worker_of_an_earlier_start_writes_nothing(job: Job) -> None:
    found = manifest.read_manifest(job.output)
    assert found is not None
    manifest.write_manifest(job.output, manifest.Manifest(found.request, 100, {}, "1", "later"))
    with pytest.raises(OutputError, match="another start of the run writes to"):
        parts.write_part(result(0, 10), job)
    (job.output / manifest.NAME).unlink()
    with pytest.raises(OutputError, match="is not there on this node"):
        parts.write_part(result(0, 10), job)
    assert parts.part_files(job.output / parts.FOLDER) == []


def test_a_table_of_another_version(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "VERSION", 2)
    with pytest.raises(OutputError, match="holds a run with schema 1, and this one has schema 2"):
        manifest.read_manifest(job.output)


def test_a_damaged_manifest(job: Job) -> None:
    (job.output / manifest.NAME).write_text('{"request": {"schema": 1}}')
    with pytest.raises(OutputError, match=r"run\.json: .* lacks "):
        manifest.read_manifest(job.output)
