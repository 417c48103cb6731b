"""Files that pyarrow opens by an address: on S3, Google Cloud Storage, Azure, Hadoop, or `file://`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from detr_export.runtimes.errors import ImageError, first_line
from detr_export.runtimes.fetching import is_address
from detr_export.runtimes.limits import current
from detr_export.runtimes.processing.image_paths import image_suffixes, no_pictures

PARQUET = ".parquet"


def is_store(text: str) -> bool:
    """Whether a text is the address of a file in a store, and neither a path nor an address on the web."""
    return "://" in text and not is_address(text)


def list_store(address: str) -> Iterator[str]:
    """The addresses of the pictures at an address: of the file, or of all pictures in the folder and below it, sorted.

    Raises:
        ImageError: there is nothing, no picture in it, or the store cannot be reached.
    """
    suffixes = image_suffixes()
    found = _files(address)
    if found == [address]:
        yield address
        return
    pictures = [file for file in found if PurePosixPath(urlsplit(file).path).suffix.lower() in suffixes]
    if not pictures:
        raise no_pictures(address)
    yield from pictures


def list_tables(given: str) -> list[str]:
    """The Parquet files of a path or address: the file, or all in the folder and below it, sorted.

    Raises:
        ImageError: there are none.
    """
    if is_store(given):
        found = _files(given)
        tables = found if found == [given] else [file for file in found if urlsplit(file).path.endswith(PARQUET)]
    elif os.path.isdir(given):
        paths = (os.path.join(folder, name) for folder, _, names in os.walk(given) for name in names)
        tables = sorted(
            path for path in paths if path.endswith(PARQUET) and not os.path.basename(path).startswith((".", "_"))
        )
    elif os.path.isfile(given):
        tables = [given]
    else:
        raise ImageError(f"{given} does not exist: expected a Parquet file, or a folder of them; check the path")
    if not tables:
        raise ImageError(f"folder {given} contains no Parquet files: expected names that end in {PARQUET}; name another one")
    return tables


def open_input(given: str) -> Any:
    """A path or address as a file of pyarrow's, which can seek.

    Raises:
        ImageError: there is no such file.
    """
    try:
        if is_store(given):
            store, path = _opened(given)
            return store.open_input_file(path)
        return pa.OSFile(given)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(given, error) from error


def read_stored(address: str) -> bytes:
    """The content of a picture in a store.

    Raises:
        ImageError: it cannot be read, or is larger than the limit `download_bytes`.
    """
    most = current().download_bytes
    with open_input(address) as file:
        try:
            size = file.size()
            if size > most:
                raise ImageError(
                    f"{address} is too large: expected at most {most / 2**20:g} MiB; add --limit download_bytes=N"
                )
            return bytes(file.read(most))
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(address, error) from error


def _files(address: str) -> list[str]:
    try:
        store, path = _opened(address)
        about = store.get_file_info(path)
        if about.type == fs.FileType.NotFound:
            raise ImageError(f"{address} does not exist: expected a file or folder; check the address")
        if about.type == fs.FileType.File:
            return [address]
        inside = store.get_file_info(fs.FileSelector(path, recursive=True))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(address, error) from error
    parts = urlsplit(address)
    start = path.rstrip("/")
    base = parts.path.rstrip("/")
    names = [item.path[len(start) :] for item in inside if item.type == fs.FileType.File]
    shown = [name for name in sorted(names) if not any(part.startswith(".") for part in name.split("/"))]
    return [urlunsplit(SplitResult(parts.scheme, parts.netloc, base + name, parts.query, "")) for name in shown]


def _opened(address: str) -> tuple[fs.FileSystem, str]:
    """The store of an address, and the path in it. A store is opened once in a process: that can take a second."""
    parts = urlsplit(address)
    store, root = _store(parts.scheme, parts.netloc, parts.query)
    return store, root + parts.path


@lru_cache(maxsize=64)
def _store(scheme: str, place: str, query: str) -> tuple[fs.FileSystem, str]:
    store, root = fs.FileSystem.from_uri(urlunsplit(SplitResult(scheme, place, "/", query, "")))
    return store, root.rstrip("/")


def _unreadable(address: str, error: Exception) -> ImageError:
    return ImageError(f"cannot read {address}: {first_line(error):.200}; check the address and who may read it")
