"""One builder at a time for the same build: others wait, and find it done.

Locks are the system's file locks: when a process is killed, its locks are free. Their files lie in the temporary folder.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detr_export.runtimes.errors import OutputError, missing_extra
from detr_export.runtimes.files import make_private_folder
from detr_export.runtimes.progress import SILENT, Progress


@contextlib.contextmanager
def build_lock(key: str, progress: Progress = SILENT, waiting: str = "waiting for another process") -> Iterator[None]:
    """Holds the lock of a key. Where another process has it, `progress` is told the line `waiting`, and this one waits.

    Raises:
        BackendError: filelock is not installed.
        OutputError: the temporary folder cannot be written.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise missing_extra("filelock", "trt") from None
    folder = Path(tempfile.gettempdir()) / f"detr-export-locks-{getpass.getuser()}"
    make_private_folder(folder, "set TMPDIR to a folder of your own")
    try:
        lock = FileLock(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.stage(waiting)
            lock.acquire()
    except OSError as error:
        raise OutputError(
            f"cannot lock in {folder}: {error.strerror or error}; set TMPDIR to a folder of your own"
        ) from error
    try:
        yield
    finally:
        lock.release()
