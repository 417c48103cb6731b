"""Writing files so that an interrupted or failed command leaves what was there before, and digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from runtimes.errors import OutputError

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; moves it into place when the block ends well, removes it otherwise.

    The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.stem}-{secrets.token_hex(6)}{target.suffix}")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    try:
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes `data` to `path` through a temporary neighbour; makes the folder when it is missing.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return Path(path)


def require_writable(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuses, before any work is done, an output that exists or whose folder cannot be written.

    Raises:
        OutputError: `path` is a folder, exists while `overwrite` is false, or its folder is not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; add --overwrite to replace it")
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: it is not a folder that this user may write to")


def sha256_of_files(paths: list[Path]) -> str:
    """Hex SHA-256 over the contents of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
