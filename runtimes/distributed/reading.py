"""The first stage: pictures are read, decoded and resized, so that who has the GPU only runs the model.

`read_images` and `read_binary_files` of Ray Data are not used: one file that is missing, empty or no picture fails their
whole job, or is passed over with others of its block. Here it is a row with an error, and its text is that of a local run.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import pyarrow as pa
import pyarrow.parquet as pq

from detr_export.runtimes.distributed.attempts import READ, attempts
from detr_export.runtimes.distributed.job import Job
from detr_export.runtimes.distributed.listing import ADDRESS, CELL, FILE, FOLDER, NOTHING, Entry, read_listing
from detr_export.runtimes.distributed.stores import open_input, read_stored
from detr_export.runtimes.errors import ImageError, InputError, first_line
from detr_export.runtimes.fetching import fetch
from detr_export.runtimes.limits import current
from detr_export.runtimes.processing.pages import load_page
from detr_export.runtimes.ready import Preparation, ReadyPicture

MESSAGE = pa.schema([("first", pa.int64()), ("stop", pa.int64()), ("content", pa.large_binary())])
_MOST_BYTES = 64 * 2**20  # of a message, unless one picture has more
_REMEDY = "expected a usable image; look at it on a machine that you do not need"
_CELLS = 32  # pictures of a table that are in memory at a time


@dataclass(frozen=True)
class Item:
    """One picture on its way to the model. Either `picture` or `error` is set."""

    path: str
    picture: Optional[ReadyPicture] = None
    error: Optional[str] = None


def read_pictures(ranges: pa.Table, job: Job, preparation: Preparation) -> Iterator[pa.Table]:
    """Reads pictures and makes them ready.

    Args:
        ranges: `first` and `stop`, int64: numbers in the list.
        job: the run.
        preparation: of the model.

    Yields:
        Tables of `MESSAGE` with one row each: `content` is a pickled list of an `Item` for each number from `first` to below
        `stop`. A range becomes several messages if its pictures are large.

    Raises:
        ArtifactError: the settings of the model's processor are not usable.
    """
    job.enter()
    with closing(_Cells(job.column)) as cells:
        for first, stop in zip(ranges["first"].to_pylist(), ranges["stop"].to_pylist()):
            items: list[Item] = []
            held, begin = 0, first
            with attempts(job.output, READ, first) as tries:
                for number, entry in enumerate(read_listing(job.output / FOLDER, first, stop), first):
                    if tries.crashed(number):
                        items.append(Item(entry.path, error=f"{entry.path}: processes that read it crashed; {_REMEDY}"))
                    else:
                        tries.at(number)
                        items.append(_item(entry, job, preparation, cells))
                    picture = items[-1].picture
                    held += 0 if picture is None else picture.pixels.nbytes
                    if held >= _MOST_BYTES or number == stop - 1:
                        yield message(begin, number + 1, pickle.dumps(items, protocol=5))
                        items, held, begin = [], 0, number + 1


def message(first: int, stop: int, content: bytes) -> pa.Table:
    """One message, as a table of `MESSAGE`."""
    arrays = [pa.array([value], field.type) for value, field in zip((first, stop, content), MESSAGE)]
    return pa.Table.from_arrays(arrays, schema=MESSAGE)


def _item(entry: Entry, job: Job, preparation: Preparation, cells: _Cells) -> Item:
    """A picture, or its error: the text that a local run gives."""
    try:
        image, _ = load_page(_file(entry, job, cells), entry.path, 1, job.work.allow_truncated)
    except ImageError as error:
        return Item(entry.path, error=str(error))
    try:
        return Item(entry.path, preparation.make_ready(image))
    except (ImageError, InputError) as error:
        return Item(entry.path, error=f"{entry.path}: {error}")


def _file(entry: Entry, job: Job, cells: _Cells) -> Union[Path, bytes]:
    if entry.kind == FILE:
        return Path(os.fsdecode(entry.location))
    if entry.kind == ADDRESS:
        return fetch(entry.path, allow_http=job.work.allow_http)
    if entry.kind == CELL:
        return cells.read(entry)
    if entry.kind == NOTHING:
        raise ImageError(f"{entry.path} is null or empty: expected a path, an address or an encoded picture")
    return read_stored(entry.location.decode())


class _Cells:
    """Reads encoded pictures out of tables. It goes through a row group once if they are asked for in their order."""

    def __init__(self, column: Optional[str]) -> None:
        self._column = column
        self._group: Optional[tuple[bytes, int]] = None  # the table and its row group
        self._opened: Any = None
        self._batches: Iterator[Any] = iter(())
        self._begin = 0  # number of the first cell of `_held` in the row group
        self._held: list[Optional[bytes]] = []

    def read(self, entry: Entry) -> bytes:
        """The content of one cell.

        Raises:
            ImageError: the table cannot be read, or the cell is null or too large.
        """
        try:
            if self._group != (entry.location, entry.group) or entry.index < self._begin:
                self._open(entry)
            while entry.index >= self._begin + len(self._held):
                self._begin += len(self._held)
                self._held = next(self._batches).column(0).to_pylist()
        except (OSError, pa.ArrowException, StopIteration, KeyError, IndexError) as error:
            self.close()
            raise ImageError(
                f"{entry.path} cannot be read out of its table: {first_line(error):.200}; the table may have changed"
            ) from error
        content = self._held[entry.index - self._begin]
        if content is None:
            raise ImageError(f"{entry.path} is null: expected an encoded picture")
        if len(content) > current().download_bytes:
            raise ImageError(
                f"{entry.path} is too large: expected at most {current().download_bytes / 2**20:g} MiB; add "
                "--limit download_bytes=N"
            )
        return content

    def close(self) -> None:
        """Closes the table."""
        if self._opened is not None:
            self._opened.close()
        self._opened, self._group, self._batches, self._begin, self._held = None, None, iter(()), 0, []

    def _open(self, entry: Entry) -> None:
        self.close()
        self._opened = open_input(os.fsdecode(entry.location))
        file = pq.ParquetFile(self._opened)
        self._batches = file.iter_batches(_CELLS, row_groups=[entry.group], columns=[self._column])
        self._group = entry.location, entry.group
