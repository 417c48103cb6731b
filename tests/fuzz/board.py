"""What a worker leaves where others can read it: how many inputs it began, and the current one."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from tests.fuzz.mutation import MOST_BYTES

_HEAD = struct.Struct("<QQ")  # inputs begun, length of the current one


class Board:
    """Count and current input in a file mapped into memory, so that they stay when the process dies."""

    def __init__(self, file: Path) -> None:
        """Makes the file, or opens that of another process."""
        size = _HEAD.size + MOST_BYTES
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._descriptor, size)
        self._map = mmap.mmap(self._descriptor, size)

    def begin(self, data: bytes) -> None:
        """Counts an input and keeps it."""
        count, _ = _HEAD.unpack_from(self._map)
        self._map[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._map, 0, count + 1, len(data))

    @property
    def count(self) -> int:
        """How many inputs were begun."""
        return int(_HEAD.unpack_from(self._map)[0])

    @property
    def current(self) -> bytes:
        """The last input that was begun."""
        length = _HEAD.unpack_from(self._map)[1]
        return bytes(self._map[_HEAD.size : _HEAD.size + length])

    def close(self) -> None:
        """Lets go of the file."""
        self._map.close()
        os.close(self._descriptor)


def work_folder() -> str | None:
    """Where targets write their inputs: in memory where there is such a place, as a disk would take most of the time."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and os.access(memory, os.W_OK) else None


def has_coverage() -> bool:
    """Whether atheris is installed. It exists for Linux; elsewhere mutations start from the seeds alone."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True
