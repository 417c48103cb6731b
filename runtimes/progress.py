"""How long work says where it is. The caller decides what that looks like, or whether it is shown at all."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work calls."""

    def stage(self, line: str) -> None:
        """A stage begins; one line for people: "tracing", "verifying 3/8 1x480x640"."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """Of the stage's `total` steps so many are done; the note says what goes on, or what came of the last step."""


class _Silent:
    def stage(self, line: str) -> None:
        pass

    def step(self, done: int, total: int, note: str = "") -> None:
        pass


SILENT: Progress = _Silent()
