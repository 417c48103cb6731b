"""The thread that reads ahead: what waits, what is dropped, errors and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable

import pytest

from detr_export.runtimes.video.frame_thread import Ended, FrameThread


class Source:
    """A generator of items that says how far it was read and whether it was closed."""

    def __init__(self, items: Iterable[int], error: Exception | None = None) -> None:
        self.given, self.closed = 0, False
        self._items, self._error = items, error

    def __call__(self) -> Generator[int, None, None]:
        try:
            for item in self._items:
                self.given += 1
                yield item
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


def thread_of(source: Source, room: int = 3, drops: bool = False) -> FrameThread[int]:
    return FrameThread(source(), room, drops, threading.Event())


def until(condition: object) -> None:
    """Waits for another thread."""
    for _ in range(2000):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.005)
    pytest.fail("it did not happen")


def all_of(thread: FrameThread[int]) -> list[int]:
    taken: list[int] = []
    while True:
        try:
            item = thread.take()
        except Ended:
            return taken
        assert item is not None
        taken.append(item)


def test_nothing_is_dropped_and_little_waits() -> None:
    source = Source(range(100))
    thread = thread_of(source)
    until(lambda: source.given == 4)  # three wait, and one stands before the door
    time.sleep(0.02)
    assert source.given == 4
    assert all_of(thread) == list(range(100))
    assert thread.dropped == 0
    thread.close()


def test_the_oldest_is_dropped() -> None:
    source = Source(range(100))
    thread = thread_of(source, drops=True)
    until(lambda: source.closed)
    assert all_of(thread) == [97, 98, 99]
    assert thread.dropped == 97
    thread.close()


def test_an_error_comes_after_the_items_before_it() -> None:
    thread = thread_of(Source(range(2), ValueError("broken")))
    assert [thread.take(), thread.take()] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        thread.take()
    with pytest.raises(Ended):
        thread.take()
    thread.close()


def test_a_wait_for_an_item_has_an_end() -> None:
    door = threading.Event()

    def items() -> Generator[int, None, None]:
        yield 1
        door.wait(10)
        yield 2

    thread = FrameThread(items(), 1, False, threading.Event())
    assert thread.take() == 1
    assert thread.take(0.01) is None
    door.set()
    assert thread.take(10) == 2
    thread.close()


@pytest.mark.parametrize("drops", [False, True])
def test_closing_ends_an_endless_source(drops: bool) -> None:
    source = Source(iter(int, 1))
    thread = thread_of(source, drops=drops)
    assert thread.take() == 0
    thread.close()
    assert source.closed
    thread.close()  # again
    with pytest.raises(Ended):
        thread.take()
