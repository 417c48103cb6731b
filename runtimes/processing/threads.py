"""Work in several threads. Pillow and numpy let other threads run, and no result depends on how many there are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from detr_export.runtimes.cpu import available_cores
from detr_export.runtimes.errors import OptionError

THREADS_VARIABLE = "DETR_EXPORT_PROCESSING_THREADS"
MAX_THREADS = 4  # if the variable is not set: images are small work, and a server has other things to do

Item = TypeVar("Item")
Result = TypeVar("Result")

_worker = threading.local()  # `busy` is set in the threads of `in_threads`


def processing_threads() -> int:
    """How many threads `in_threads` would use: the environment variable, or one for each CPU core up to `MAX_THREADS`.

    A thread that does such work already gets no others for parts of it.

    Raises:
        OptionError: the variable is not a positive integer.
    """
    if getattr(_worker, "busy", False):
        return 1
    text = os.environ.get(THREADS_VARIABLE)
    if text is None:
        return min(available_cores(), MAX_THREADS)
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(
            f"{THREADS_VARIABLE} is {text!r}, expected a positive integer; set it to 1 for no threads, or unset it"
        )
    return int(text)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, several at a time. It raises what `work` raises for the first item that fails.

    The threads live as long as the call: a process that forks between two calls needs to know nothing of them.
    """
    threads = min(processing_threads(), len(items))
    if threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, initializer=_become_worker) as pool:
        return list(pool.map(work, items))


def _become_worker() -> None:
    _worker.busy = True
