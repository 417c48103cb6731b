"""A `Progress` that remembers what it was told."""

from __future__ import annotations


class Recorder:
    """Keeps the lines of all stages, and (done, total, note) of all steps."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def stage(self, line: str) -> None:
        self.lines.append(line)

    def step(self, done: int, total: int, note: str = "") -> None:
        self.steps.append((done, total, note))
