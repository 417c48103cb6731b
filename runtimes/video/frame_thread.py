"""A thread that reads ahead, with a limit on what waits. It drops nothing, or the oldest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Generic, Optional, TypeVar

Item = TypeVar("Item")


class Ended(Exception):
    """There are no more items."""


class FrameThread(Generic[Item]):
    """Takes items from a generator in a thread of its own.

    Args:
        items: are taken, and closed, in the thread.
        room: how many may wait.
        drops: what happens when there is no room: the oldest that waits is dropped; else the thread waits.
        stop: is set by `close`, so that the generator can end a wait of its own.
    """

    def __init__(self, items: Generator[Item, None, None], room: int, drops: bool, stop: threading.Event) -> None:
        self.dropped = 0  # items
        self._items, self._room, self._drops, self._stop = items, room, drops, stop
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: Optional[Exception] = None
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def take(self, wait: Optional[float] = None) -> Optional[Item]:
        """The next item.

        Args:
            wait: at most so many seconds; None for as long as it takes.

        Returns:
            None if none came.

        Raises:
            Ended: there are no more.
            Exception: what the generator raised, after the items before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, wait)
            if self._waiting:
                self._changed.notify_all()
                return self._waiting.popleft()
            if not self._ended:
                return None
        error, self._error = self._error, None
        raise error or Ended

    def stop(self) -> None:
        """Asks the thread to end."""
        self._stop.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread, and waits for it."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            with closing(self._items) as items:
                for item in items:
                    if not self._put(item):
                        break
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Whether the thread goes on."""
        with self._changed:
            self._changed.wait_for(lambda: self._drops or self._stop.is_set() or len(self._waiting) < self._room)
            if self._stop.is_set():
                return False
            if len(self._waiting) == self._room:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(item)
            self._changed.notify_all()
            return True
