"""Runs a command in this process, as the shell would see it: exit code, stdout and stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

PROGRAMS = {"detr-export": "detr_export.cli", "detr-bench": "detr_export.benchmarks.command"}


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that are neither progress nor notes."""
        return [line for line in self.err.splitlines() if not line.startswith(("  ", "note: "))]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path, program: str = "detr-export") -> Done:
    """Runs a command."""
    main: Callable[[], None] = import_module(PROGRAMS[program]).main
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as exit_:
            main()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert isinstance(exit_.value.code, int)
    return Done(exit_.value.code, printed.out, printed.err)
