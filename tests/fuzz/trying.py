"""Tries inputs, keeps those with findings, and makes them smaller."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.fuzz.board import Board
from tests.fuzz.mutation import MOST_BYTES
from tests.fuzz.target import Finding, Function, Target, try_input

_KEPT = 400  # inputs that the engine without coverage keeps as new seeds


class Recorder:
    """Tries inputs, and writes the first one of each finding."""

    def __init__(self, function: Function, board: Board, folder: Path) -> None:
        self._function, self._board, self._folder = function, board, folder
        self._known = {file.stem for file in folder.glob("*.json")}

    def __call__(self, data: bytes) -> None:
        """Tries one input."""
        data = data[:MOST_BYTES]
        self._board.begin(data)
        found = try_input(self._function, data)
        if found is not None:
            self.keep(found, data)

    def keep(self, found: Finding, data: bytes) -> None:
        """Writes a finding and its input, if none of that kind is known."""
        name = file_name(found)
        if name not in self._known:
            self._known.add(name)
            smaller = shrunk(self._function, data, found)
            (self._folder / name).write_bytes(smaller)
            (self._folder / f"{name}.json").write_text(json.dumps(vars(found)))


def file_name(found: Finding) -> str:
    """The file that a finding is kept under."""
    return hashlib.sha256(found.key.encode()).hexdigest()[:12]


def shrunk(function: Function, data: bytes, found: Finding, seconds: float = 2.0) -> bytes:
    """A smaller input with the same finding: pieces are cut out as long as it stays. Slow ones remain as they are."""
    if found.kind in ("slow", "MemoryError"):
        return data
    end, size = time.monotonic() + seconds, max(len(data) // 2, 1)
    while size and time.monotonic() < end:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + size :]
            again = try_input(function, shorter)
            if again is not None and again.key == found.key:
                data = shorter
            else:
                at += size
        size //= 2
    return data


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """In the block, this process may have so many bytes more than it has now; what asks for more gets a MemoryError."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    most = int(status.read_text().split()[0]) * mmap.PAGESIZE + more
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def plain(target: Target, try_one: Callable[[bytes], None], seeds: Sequence[bytes], runs: int, seed: int) -> None:
    """Tries mutations of the seeds, and of some mutations, in an order that `seed` decides."""
    draw, inputs = random.Random(seed), list(seeds)
    for _ in range(runs):
        data = target.mutate(draw.choice(inputs), draw)
        try_one(data)
        if draw.random() < 0.02:
            at = len(inputs) if len(inputs) < len(seeds) + _KEPT else draw.randrange(len(seeds), len(inputs))
            inputs[at : at + 1] = [data]
