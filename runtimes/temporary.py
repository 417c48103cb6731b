"""Temporary files and folders, which go away with the work that needs them: after an error, a signal, and a `kill -9`.

A process that is killed cannot remove anything. Each temporary file or folder of a running process is locked by it, and
the system frees the lock when the process ends. So the next one that makes something in the same folder can tell what is
left over, and removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from detr_export.runtimes.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

_BESIDE = ".detr-export-"  # beside the file that is made
_APART = "detr-export-"  # in the folder for temporary files
_OURS = re.compile(r"\.?detr-export-[0-9a-f]{16}(\.[^/]*)?")
_YOUNG = 5.0  # seconds; what is younger may not be locked yet

_alive: dict[Path, int] = {}  # each with the process that made it, as processes that are forked off have a copy of this
_swept: set[Path] = set()


class Temporary:
    """A file or folder that is there inside of `with`, and gone after it, unless it was moved to its place.

    Args:
        folder: that it lies in.
        name: of it.
        is_folder: which of the two it is.
        mode: before the umask.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path, name: str, is_folder: bool = False, mode: int = 0o666) -> None:
        _remove_left_over(folder)
        self.path = folder / name
        self._lock: Optional[int] = None
        _alive[self.path] = os.getpid()  # before it is there: a signal may come at any moment
        try:
            if is_folder:
                os.mkdir(self.path, mode)
            if not is_folder or fcntl is not None:  # Windows does not open folders
                flags = os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
                self._lock = os.open(self.path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), mode)
        except OSError:
            self.remove()
            raise
        if self._lock is not None and fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Removes it, if it is still there."""
        if _alive.get(self.path) == os.getpid():
            _remove(self.path)
            _alive.pop(self.path, None)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def temporary_file(target: Path) -> Temporary:
    """A file beside `target`, with its suffix: some writers choose the format by that. It has the mode of any new file."""
    return Temporary(target.parent, f"{_BESIDE}{secrets.token_hex(8)}{target.suffix}")


def temporary_folder(beside: Optional[Path] = None, mode: int = 0o700) -> Temporary:
    """A folder beside a path; by default in the folder for temporary files, where only this user can read it.

    Raises:
        OutputError: it cannot be made in the folder for temporary files.
        OSError: it cannot be made beside the path.
    """
    if beside is not None:
        return Temporary(beside.parent, f"{_BESIDE}{secrets.token_hex(8)}", True, mode)
    try:
        folder = Path(tempfile.gettempdir())
        return Temporary(folder, f"{_APART}{secrets.token_hex(8)}", True, mode)
    except OSError as error:
        raise OutputError(
            f"cannot make a temporary folder: {error.strerror or error}; set TMPDIR to a folder with space"
        ) from error


def remove_all() -> None:
    """Removes all of this process, also what is in use: the process ends."""
    for path, owner in list(_alive.items()):
        if owner == os.getpid():
            _remove(path)
            _alive.pop(path, None)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _remove_left_over(folder: Path) -> None:
    """Removes from a folder what processes made that were killed; once in a process, as a folder can be large."""
    if fcntl is None or folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left_over(entry)


def _remove_if_left_over(entry: os.DirEntry[Any]) -> None:
    found = entry.stat(follow_symlinks=False)
    known = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    if not known or found.st_uid != os.geteuid() or time.time() - found.st_mtime < _YOUNG:
        return
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its process lives
        _remove(Path(entry.path))
    finally:
        os.close(descriptor)
