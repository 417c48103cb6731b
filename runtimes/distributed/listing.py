"""The list of all pictures of a run, made once: a run that goes on has the same pictures with the same numbers.

It lies in Parquet files, which workers read piece by piece: neither the driver nor Ray's memory holds ten million paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Optional

import pyarrow as pa
import pyarrow.parquet as pq

from detr_export.runtimes.distributed.stores import PARQUET, is_store, list_store, list_tables, open_input
from detr_export.runtimes.errors import InputError, first_line
from detr_export.runtimes.fetching import is_address
from detr_export.runtimes.files import make_folder, replacing, writing
from detr_export.runtimes.processing.image_paths import short
from detr_export.runtimes.sources import STDIN, find_sources

FOLDER = "sources"
_GROUP = 1024  # pictures of a row group
_PIECE = 64 * _GROUP  # of a file

FILE, ADDRESS, STORE, CELL, NOTHING = "file", "address", "store", "cell", "nothing"


@dataclass(frozen=True)
class Entry:
    """One picture of the list."""

    path: str  # what results and messages call it
    file: str  # what COCO's documents call it: the path in its folder
    kind: str  # what `location` is: "file", "address", "store", "cell" of a table, or "nothing"
    location: bytes  # the path as the system has it, or the address; of a cell the table's
    group: int = 0  # row group of a cell
    index: int = 0  # of the cell in its row group


_SCHEMA = pa.schema(
    [
        pa.field(item.name, {"str": pa.string(), "bytes": pa.binary(), "int": pa.int64()}[str(item.type)], nullable=False)
        for item in fields(Entry)
    ]
)


def find_pictures(
    given: Sequence[str], column: Optional[str], output: Path, allow_http: bool = False, absolute: bool = False
) -> Iterator[Entry]:
    """Finds the pictures that were named, each once.

    Args:
        given: as in `find_sources`, without `-`; also addresses that `pyarrow.fs` opens. With `column`: Parquet files, or
            folders of them.
        column: of the tables: paths and addresses (text), or encoded pictures (binary).
        output: the folder for results, which is passed over.
        allow_http: whether addresses on other machines may begin with http://.
        absolute: whether paths are made absolute: on another machine a relative one means nothing.

    Raises:
        ImageError: something does not exist, or a folder has no pictures.
        InputError: a table lacks the column, or it holds something else; or a source is not for this.
    """
    if STDIN in given:
        raise InputError("stdin (-) is one picture and has no place in a list for many machines; name a file")
    if column is not None:
        yield from _of_tables(given, column, absolute)
        return
    tables = [text for text in given if text.lower().endswith(PARQUET)]
    if tables:
        raise InputError(f"{short(tables[0])} is a table; say which column has the pictures: --column NAME")
    stored = [text for text in given if is_store(text)]
    local = [os.path.abspath(text) if absolute and not is_address(text) else text for text in given if text not in stored]
    if local or not stored:
        for source in find_sources(local, output, allow_http=allow_http).pictures:
            path = str(source.image)
            kind = FILE if isinstance(source.image, Path) else ADDRESS
            yield Entry(_text(path), _text(source.file), kind, os.fsencode(path))
    seen: set[str] = set()
    for text in stored:
        for address in list_store(text):
            if address not in seen:
                seen.add(address)
                inside = address[len(text) :].lstrip("/") if address.startswith(text) and address != text else address
                yield Entry(address, inside, STORE, address.encode())


def write_listing(entries: Iterable[Entry], folder: Path) -> int:
    """Writes a list into files below a folder; returns how many pictures it has.

    Raises:
        OutputError: it cannot be written.
    """
    make_folder(folder)
    entries, count = iter(entries), 0
    while piece := list(islice(entries, _PIECE)):
        path = _file(folder, count)
        table = pa.Table.from_pylist([asdict(entry) for entry in piece], _SCHEMA)
        with replacing(path) as temporary, writing(path):
            pq.write_table(table, temporary, row_group_size=_GROUP)
        count += len(piece)
    return count


def read_listing(folder: Path, first: int, stop: int) -> list[Entry]:
    """The pictures from number `first` to below `stop`, of one list.

    Raises:
        OSError: the list is not there.
    """
    found: list[Entry] = []
    number = first
    while number < stop:
        group = number % _PIECE // _GROUP
        begin = number // _PIECE * _PIECE + group * _GROUP
        with pq.ParquetFile(_file(folder, number)) as file:
            rows = file.read_row_group(group).slice(number - begin, stop - number).to_pylist()
        found += [Entry(**row) for row in rows]
        number += len(rows)
    return found


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number // _PIECE:06d}{PARQUET}"


def _of_tables(given: Sequence[str], column: str, absolute: bool) -> Iterator[Entry]:
    seen: set[str] = set()
    tables: dict[str, None] = {}
    for text in given:
        tables.update(dict.fromkeys(list_tables(os.path.abspath(text) if absolute and not is_store(text) else text)))
    for table in tables:
        try:
            with open_input(table) as opened, pq.ParquetFile(opened) as file:
                if _holds_content(table, file.schema_arrow, column):
                    yield from _cells(table, file)
                    continue
                for entry in _named(table, file, column, absolute):
                    key = os.path.abspath(entry.path) if entry.kind == FILE else entry.path
                    if key not in seen:
                        seen.add(key)
                        yield entry
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{table} cannot be read as Parquet: {first_line(error):.200}; write it again") from error


def _holds_content(table: str, schema: pa.Schema, column: str) -> bool:
    """Whether a column has encoded pictures. Else it has paths and addresses."""
    if column not in schema.names:
        raise InputError(
            f"{table} has no column {column!r}; it has {', '.join(schema.names) or 'none'}; name one of them (--column)"
        )
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return False
    raise InputError(f"the column {column} of {table} is {kind}; expected paths (string) or encoded pictures (binary)")


def _cells(table: str, file: pq.ParquetFile) -> Iterator[Entry]:
    number = 0
    for group in range(file.num_row_groups):
        for index in range(file.metadata.row_group(group).num_rows):
            name = f"{_text(table)}#{number}"
            yield Entry(name, name, CELL, os.fsencode(table), group, index)
            number += 1


def _named(table: str, file: pq.ParquetFile, column: str, absolute: bool) -> Iterator[Entry]:
    number = 0
    for batch in file.iter_batches(columns=[column]):
        for text in batch.column(0).to_pylist():
            if not text:
                name = f"{_text(table)}#{number}"
                yield Entry(name, name, NOTHING, b"")
            elif is_address(text):
                yield Entry(text, text, ADDRESS, text.encode())
            elif is_store(text):
                yield Entry(text, text, STORE, text.encode())
            else:
                path = os.path.abspath(text) if absolute else text
                yield Entry(path, path, FILE, os.fsencode(path))
            number += 1


def _text(name: str) -> str:
    """A name as text. What is no valid Unicode in it is spelled with backslashes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
