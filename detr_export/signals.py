"""Ctrl-C, SIGTERM and SIGHUP in a command: the first one ends the work in order, a later one ends the process at once.

This file imports the standard library alone and next to nothing of it: a command installs the handlers first, and only
then imports what takes time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Whatever starts us may pass Ctrl-C on to us, so that it comes twice. What comes so soon is the same one, in seconds.
SAME = 0.5
_AGAIN = 0.02  # seconds after which a signal is raised once more that was lost

# What a process does before it ends at once: `runtimes.temporary.remove_all` is added where that is imported anyway.
LAST_ACTS: list[Callable[[], None]] = []


class _Seen:
    """The first signal that came."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self.lost = False  # whether its exception was raised where nobody gets it


_seen = _Seen()


def received() -> bool:
    """Whether a signal has asked this process to end. Errors that come after it are a consequence of it."""
    return _seen.number is not None


def exit_code() -> int:
    """What an interrupted command ends with: 128 and the signal's number. Without a signal that of Ctrl-C."""
    return 128 + (signal.SIGINT if _seen.number is None else _seen.number)


def note(number: int) -> bool:
    """Keeps the first signal; returns whether this one is a later one, which asks to end at once."""
    if _seen.number is None:
        _seen.number, _seen.at = number, time.monotonic()
        return False
    return time.monotonic() - _seen.at > SAME


def is_first(number: int) -> bool:
    """Whether no signal came before: it is noted."""
    first = _seen.number is None
    note(number)
    return first


def handled_signals() -> list[int]:
    """The signals that have the handler of `handled` now."""
    return [number for number in ENDING if signal.getsignal(number) is _handle]


def interruption_in(error: BaseException) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that a library made another error of; None if there is none."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, KeyboardInterrupt):
            return found
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            waiting += [found.__cause__, found.__context__]
    return None


@contextmanager
def handled(to_the_end: bool = False) -> Iterator[None]:
    """Handles the signals for the length of the block, which gets a KeyboardInterrupt for the first of them.

    Args:
        to_the_end: whether nothing follows the block but the end of the process. Its exit code is decided then, so the
            signals are ignored from then on.

    A signal that is ignored stays ignored: `nohup` asks for that, and so does a shell for what it starts in the background.
    Outside the main thread nothing changes. A block inside of another one changes nothing either.
    """
    global _seen
    if threading.current_thread() is not threading.main_thread() or handled_signals():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    unraisable = sys.unraisablehook
    _seen = _Seen()
    try:
        sys.unraisablehook = _raise_again(unraisable)
        for number in before:
            signal.signal(number, _handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if to_the_end else handler)
        sys.unraisablehook = unraisable
        if not to_the_end:
            _seen = _Seen()


def _handle(number: int, frame: object) -> None:
    lost, _seen.lost = _seen.lost, False
    if lost or is_first(number):
        raise KeyboardInterrupt
    if note(number):
        end_at_once()


def end_at_once() -> None:
    """Ends the process without waiting for threads, runs of a model or other processes."""
    for act in LAST_ACTS:
        try:
            act()
        except Exception:  # noqa: PERF203  # what remains is to end
            continue
    say_interrupted()
    os._exit(exit_code())


def say_interrupted() -> None:
    """Prints the line of an interrupted command on stderr, without the help of a library."""
    try:
        os.write(2, b"interrupted\n")
    except OSError:  # stderr is closed, or its disk is full
        return


def _raise_again(otherwise: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A hook for exceptions that nobody gets. A signal that came inside of a finaliser would be lost; it comes again."""

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            otherwise(unraisable)
            return
        _seen.lost = True
        again = threading.Timer(_AGAIN, os.kill, (os.getpid(), _seen.number or signal.SIGINT))
        again.daemon = True
        again.start()

    return hook
