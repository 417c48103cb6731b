"""Writes files so that an interrupted or failed command leaves the old file in place; also digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from detr_export.runtimes.errors import DetrError, OutputError

_CHUNK_BYTES = 1 << 20
_NOT_REGULAR = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`. When the block ends well the file moves into place, otherwise it is removed.

    The temporary name keeps the suffix, because some writers choose the format by it.

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
        with writing(target):
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes `data` to `path` by way of a temporary file beside it. Makes the folder if it is missing.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary, writing(path):
        temporary.write_bytes(data)
    return Path(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` of the block, such as a full disk, into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` or `~user` replaced by the home directory. Without such a user it stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def require_regular(path: str | os.PathLike[str], kind: type[DetrError]) -> None:
    """Refuses what is no regular file, after links were followed: a pipe would be waited for, a device might never end.

    Args:
        path: what shall be read.
        kind: the error to raise.

    Raises:
        kind: it is missing, cannot be reached, or is something else.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise kind(f"{path} does not exist or is not a file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise kind(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        what = next((name for is_it, name in _NOT_REGULAR if is_it(mode)), "something else")
        raise kind(f"{path} does not exist or is not a file: it is {what}; expected a regular file")


def require_writable(path: str | os.PathLike[str], overwrite: bool, suffix: str = "") -> None:
    """Refuses, before any work is done, an output that exists or a folder that cannot be written to.

    Raises:
        OutputError: `path` is a folder or a device, does not end in `suffix`, exists while `overwrite` is false, or its
            folder is not writable.
    """
    target = Path(path)
    if not target.name.endswith(suffix):
        raise OutputError(
            f"{target} does not end in {suffix}, and other commands know the file by that; name it {target}{suffix}"
        )
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; add --overwrite to replace it")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} is not a regular file; give another name")
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


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 over the content of a file."""
    return sha256_of_files([path])


@contextlib.contextmanager
def replacing_together(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, for a file with others that belong to it.

    The temporary path is in a folder of its own, and has the name of `path`. All files that the block leaves there move to
    the folder of `path`, and the one at the temporary path is the last.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.with_name(f".{target.stem}-{secrets.token_hex(6)}")
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    try:
        yield folder / target.name
        made = sorted(folder.iterdir(), key=lambda file: (file.name == target.name, file.name))
        for file in made:
            with writing(target.with_name(file.name)):
                os.replace(file, target.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
