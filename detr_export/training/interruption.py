"""Ctrl-C and SIGTERM in a training run: the step in progress is finished first."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from detr_export import signals


class Flag:
    """Whether something has happened."""

    def __init__(self) -> None:
        self.up = False
        self.since = 0.0

    def __bool__(self) -> bool:
        return self.up


@contextmanager
def held_interrupts() -> Iterator[Flag]:
    """Holds Ctrl-C back and raises a flag instead: in the middle of an optimiser's step the weights belong to no run.

    In a command it holds all signals back that end it. A second Ctrl-C is not held back. Outside the main thread, which
    alone gets signals, the flag stays down.
    """
    flag, of_command = Flag(), signals.handled_signals()

    def raise_flag(number: int, frame: object) -> None:
        if of_command:
            signals.note(number)
        if not flag:
            flag.up, flag.since = True, time.monotonic()
        elif time.monotonic() - flag.since > signals.SAME:
            raise KeyboardInterrupt

    before = {}
    try:
        for number in {signal.SIGINT, *of_command}:
            before[number] = signal.signal(number, raise_flag)
    except ValueError:  # not the main thread
        yield flag
        return
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_interrupts() -> None:
    """For the processes of a data loader: a signal may reach all processes of a job, and the main one decides."""
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_IGN)
