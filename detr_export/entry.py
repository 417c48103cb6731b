"""Where both commands begin: signals are handled before anything is imported that takes time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from detr_export import signals


def export() -> None:
    """The command `detr-export`."""
    _run("detr_export.cli")


def bench() -> None:
    """The command `detr-bench`."""
    _run("detr_export.benchmarks.command")


def _run(module: str) -> None:
    _open_standard_streams()
    with signals.handled(to_the_end=True):
        try:
            main: Callable[[], None] = import_module(module).main
            main()
        except (KeyboardInterrupt, ImportError):
            if not signals.received():  # without a handler, that of Python: Ctrl-C
                raise
            signals.say_interrupted()
            if "--json" in sys.argv:
                print('{"error": {"kind": "Interrupted", "message": "interrupted"}}')
            sys.exit(signals.exit_code())


def _open_standard_streams() -> None:
    """Opens those that are closed. The first files to be opened would get their numbers, and the output of C libraries.

    Python has None in the place of a closed stream, which libraries do not expect.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  # until the end
