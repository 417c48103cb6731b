"""Ctrl-C in a training run: the step in progress is finished first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Flag:
    """Whether something has happened."""

    def __init__(self) -> None:
        self.up = False

    def __bool__(self) -> bool:
        return self.up


@contextmanager
def held_interrupts() -> Iterator[Flag]:
    """Holds Ctrl-C back and raises a flag instead: in the middle of an optimiser's step the weights belong to no run.

    A second Ctrl-C is not held back. Outside the main thread, which alone gets signals, the flag stays down.
    """
    flag = Flag()

    def raise_flag(number: int, frame: object) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.up = True

    try:
        before = signal.signal(signal.SIGINT, raise_flag)
    except ValueError:  # not the main thread
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_interrupts() -> None:
    """For the processes of a data loader: Ctrl-C reaches all processes of a terminal, and the main one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
