"""Where both commands begin: signals are handled before anything is imported that takes time."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
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
        except SystemExit as exit_:
            if signals.received() and any(thread.daemon for thread in threading.enumerate()):
                # A thread of a library still works, such as TensorRT's builder. It would crash when Python goes.
                _end_now(exit_.code)
            raise
        except (KeyboardInterrupt, ImportError):
            if not signals.received():  # without a handler, that of Python: Ctrl-C
                raise
            signals.say_interrupted()
            if "--json" in sys.argv:
                print('{"error": {"kind": "Interrupted", "message": "interrupted"}}')
            sys.exit(signals.exit_code())


def _end_now(code: object) -> None:
    """Ends the process without what Python does at its end. All that is temporary is gone by then."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else signals.exit_code())


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
