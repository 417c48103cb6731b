"""Frames of a camera or stream, which may go away and come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.video.frame import VideoFrame

RECONNECT = 30.0  # seconds for which a lost stream is tried again, where the caller does not say
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between two tries; each pause is twice the last one
_MILLION = 1_000_000

Connect = Callable[[], AbstractContextManager[Iterator[VideoFrame]]]


def live_frames(
    connect: Connect,
    title: str,
    patience: float,
    pause: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Generator[VideoFrame, None, None]:
    """The frames of one connection after another, with numbers and times that go on.

    Args:
        connect: makes a connection, whose frames begin at number 0 and time 0.
        title: of the stream, for messages.
        patience: for how many seconds a lost connection is tried again. With 0 the end of a connection is the end.
        pause: waits for some seconds; returns whether to give up, because nobody wants frames any more.
        clock: seconds.

    Yields:
        Frames. After a gap their times go on with the time that has passed.

    Raises:
        ImageError: the first connection fails, or a lost one does not come back.
    """
    number, stamp, began = 0, Fraction(0), None
    lost_at, wait, why = None, _FIRST_PAUSE, ""
    while True:
        first_number, first_stamp = number, stamp
        try:
            with connect() as frames:
                for frame in frames:
                    if began is None:
                        began = clock()
                    elif lost_at is not None:  # the first frame after a gap
                        passed = Fraction(round((clock() - began) * _MILLION), _MILLION)
                        first_stamp = max(stamp + Fraction(1, _MILLION), passed) - frame.stamp
                    lost_at, wait = None, _FIRST_PAUSE
                    stamp = first_stamp + frame.stamp
                    yield VideoFrame(first_number + frame.number, stamp, frame.pixels)
                    number = first_number + frame.number + 1
            if began is None:
                raise ImageError(f"{title} ended before its first frame; check the address")
            if not patience:
                return
            why = "it ended"
        except ImageError as error:
            if began is None:
                raise
            why = str(error).rpartition(f"{title}: ")[2].partition(";")[0]
        now = clock()
        lost_at = now if lost_at is None else lost_at
        left = patience - (now - lost_at)
        if left <= 0:
            tried = f", and did not come back within {patience:g} seconds" if patience else ""
            raise ImageError(
                f"{title} was lost after frame {number - 1}, at {float(stamp):.2f} s{tried} ({why}); the frames up to there "
                "were used"
            )
        if pause(min(wait, left)):
            return
        wait = min(2 * wait, _LONGEST_PAUSE)
