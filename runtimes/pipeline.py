"""Runs work in threads, with its results in order and a limit on what is in memory.

While the model runs, other threads read and prepare the next images, and draw and write the last ones. NumPy, Pillow and the
backends leave the interpreter free while they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Optional, TypeVar

import numpy as np

from detr_export.runtimes.grouping import Size, group_by_size
from detr_export.runtimes.session import Choose, Session

Task = TypeVar("Task")
Done = TypeVar("Done")

WORKERS = 4  # threads: one reads, one waits for the model or runs it, one draws, and one is ready for the next step
_QUEUED = 2  # tasks for each worker that are running, waiting, or finished before an earlier one is


class ModelThread(Session):
    """Another session's runs, one at a time, in a thread of their own. Leaving it ends the thread; the session stays open.

    Args:
        session: the session that runs.
    """

    def __init__(self, session: Session) -> None:
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self.source = session.source
        self._session = session
        self._thread = ThreadPoolExecutor(1, "model")

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._thread.submit(self._session.run, inputs).result()

    def run_chosen(self, inputs: Mapping[str, np.ndarray], choose: Choose) -> dict[str, np.ndarray]:
        self.require_own_process()
        return self._thread.submit(self._session.run_chosen, inputs, choose).result()

    def stop(self) -> None:
        """Starts no more runs: those that wait, and later ones, fail. It does not wait for the run that is going on."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def in_order(
    function: Callable[[Task], Done], tasks: Iterable[Task], workers: int, stop: Callable[[], None]
) -> Generator[Done, None, None]:
    """Calls a function on each task in threads, and yields the results in the order of the tasks.

    At most two tasks for each worker are taken from `tasks` before the oldest one's result is yielded. An exception of the
    function reaches the caller where its result would have come. When the iterator ends, is closed, or fails, no new task is
    started, and its threads have ended before it returns.

    Args:
        function: what is called.
        tasks: its arguments, read in the caller's thread.
        workers: how many threads call it.
        stop: is called before the threads are waited for, and should make calls that still run end soon.
    """
    pool = ThreadPoolExecutor(workers, "pictures")
    running: deque[Future[Done]] = deque()
    try:
        for task in tasks:
            running.append(pool.submit(function, task))
            while running and (running[0].done() or len(running) >= _QUEUED * workers):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


def in_batches(
    function: Callable[[list[Task]], list[Done]],
    tasks: Iterable[tuple[Task, Optional[Size]]],
    batch: int,
    max_padding: float,
    workers: int = 0,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Done, None, None]:
    """Calls a function on batches of tasks, and yields its results in the order of the tasks.

    Tasks are taken as in `in_order`, with batches in the place of tasks, and as far ahead as `group_by_size` reads. The end
    and exceptions are as in `in_order`.

    Args:
        function: gives a list with one result for each task of a batch.
        tasks: with the sizes by which they are grouped; `batch` and `max_padding` are those of `group_by_size`.
        workers: how many threads call the function; 0 for the caller's own.
        stop: as in `in_order`.
    """

    def finish(group: list[tuple[int, Task]]) -> list[tuple[int, Done]]:
        return list(zip([number for number, _ in group], function([task for _, task in group])))

    groups = group_by_size((((number, task), size) for number, (task, size) in enumerate(tasks)), batch, max_padding)
    finished = in_order(finish, groups, workers, stop) if workers else (finish(group) for group in groups)
    # Batches finish in another order than that of their tasks, so a result waits here for those before it.
    waiting: dict[int, Done] = {}
    due = 0
    with closing(finished):
        for results in finished:
            waiting.update(results)
            while due in waiting:
                yield waiting.pop(due)
                due += 1
