"""How long work reports its progress. The caller decides whether and how it is shown."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The functions that long work calls."""

    def stage(self, line: str) -> None:
        """Reports that a stage begins, in one line for people: "tracing", "verifying 3/8 1x480x640"."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """Reports that `done` of the stage's `total` steps are done; the note says what happens now or what came out."""


class _Silent:
    def stage(self, line: str) -> None:
        pass

    def step(self, done: int, total: int, note: str = "") -> None:
        pass


SILENT: Progress = _Silent()
