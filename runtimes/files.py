"""Writes files so that an interrupted or failed command leaves the old file in place; also digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from detr_export.runtimes.errors import DetrError, OutputError
from detr_export.runtimes.temporary import temporary_file, temporary_folder

_CHUNK_BYTES = 1 << 20
_MOST_STEPS = 10_000  # of a path with its links; one that leads into itself has no end
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

    The temporary name keeps the suffix, because some writers choose the format by it. The file has the mode that the umask
    gives to new files, also where it takes the place of another.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    target = Path(path)
    make_folder(target.parent)
    try:
        temporary = temporary_file(target)
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    with temporary as place:
        yield place
        with writing(target):
            os.replace(place, target)


def make_folder(folder: Path) -> None:
    """Makes a folder with all above it, as the umask says.

    Raises:
        OutputError: it cannot be made, or another user's link leads to it.
    """
    require_own_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error


def make_private_folder(folder: Path, remedy: str) -> None:
    """Makes a folder that this user alone can write to: for code that will run here, and for locks.

    Args:
        folder: that is wanted.
        remedy: for the message of an error.

    Raises:
        OutputError: it cannot be made, another user owns it, or others may write to it.
    """
    require_own_links(folder)
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}; {remedy}") from error
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid != os.geteuid():
        raise OutputError(f"{folder} belongs to another user (uid {found.st_uid}), who could put code into it; {remedy}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OutputError(f"others may write to {folder}, and put code into it; run chmod go-w {folder}, or {remedy}")


def require_own_links(path: str | os.PathLike[str]) -> None:
    """Refuses a path through a link that another user put into a folder in which all may write, such as /tmp.

    Linux does the same where `fs.protected_symlinks` is on: a link in a sticky folder that all may write to is followed
    only if it belongs to who follows it, to the owner of the folder, or to root.

    Raises:
        OutputError: names the link.
    """
    if not hasattr(os, "geteuid"):
        return
    place = Path() if os.path.isabs(path) else Path.cwd()
    waiting = list(reversed(Path(path).parts))
    for _ in range(_MOST_STEPS):
        if not waiting:
            return
        step = waiting.pop()
        if step == os.pardir:
            place = place.parent
            continue
        place = place / step  # an absolute step begins anew
        try:
            found = os.lstat(place)
            if not stat.S_ISLNK(found.st_mode):
                continue
            around, target = os.stat(place.parent), os.readlink(place)
        except (OSError, ValueError):  # it is not there yet, or never can be
            continue
        open_to_all = around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH
        if open_to_all and found.st_uid not in (0, os.geteuid(), around.st_uid):
            raise OutputError(
                f"{place} is a link that another user (uid {found.st_uid}) put into a folder of all; give another place"
            )
        place = place.parent
        waiting += reversed(Path(target).parts)


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
        raise kind(f"{path} is not a regular file: it is {what}")


def require_writable(path: str | os.PathLike[str], overwrite: bool, suffix: str = "") -> None:
    """Refuses, before any work is done, an output that exists or a folder that cannot be written to.

    Raises:
        OutputError: `path` is a folder or a device, does not end in `suffix`, exists while `overwrite` is false, its folder
            is not writable, or another user's link leads to it.
    """
    target = Path(path)
    require_own_links(target)
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
    make_folder(target.parent)
    try:
        temporary = temporary_folder(beside=target)
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    with temporary as folder:
        yield folder / target.name
        made = sorted(folder.iterdir(), key=lambda file: (file.name == target.name, file.name))
        for file in made:
            with writing(target.with_name(file.name)):
                os.replace(file, target.with_name(file.name))


def replace_folder(new: Path, place: Path, aside: Path) -> None:
    """Moves a folder into its place. One that is there moves out of the way first, and comes back if that fails.

    Args:
        new: the folder.
        place: where it goes, on the same file system.
        aside: where the old one is meanwhile; not a temporary path, so that a kill between the two moves leaves it there.

    Raises:
        OSError: a folder cannot be moved.
    """
    try:
        if place.exists():
            os.rename(place, aside)
        os.rename(new, place)
    except BaseException:
        if aside.exists() and not place.exists():
            os.rename(aside, place)
        raise
    finally:
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
