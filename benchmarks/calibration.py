"""How fast the machine is at this moment: a fixed piece of work, timed between the turns of the variants.

It is a product of two float32 matrices that fit into the second-level cache, one on each core that the variants use, each
on one thread. All of them start together and the last one counts, so a core that another process has taken shows, and so
do clocks that went down. What it measures means nothing in itself; only its changes do.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from runtimes.errors import missing_extra

try:
    from threadpoolctl import ThreadpoolController
except ImportError as error:
    raise missing_extra("threadpoolctl", "bench") from error

_SIDE = 384  # of the matrices: 0.11 GFLOP, one to two milliseconds on a core of today
_REPEATS = 5  # the median of which is the calibration


class Calibration:
    """The kernel with its operands; call `measure` while nothing else runs.

    Args:
        threads: cores that the variants use.
    """

    def __init__(self, threads: int) -> None:
        generator = np.random.default_rng(0)
        self._operands = [
            (*generator.random((2, _SIDE, _SIDE), dtype=np.float32), np.empty((_SIDE, _SIDE), np.float32))
            for _ in range(threads)
        ]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="calibration")
        self._start = threading.Barrier(threads + 1)
        self._controller = ThreadpoolController()
        self.measure()  # starts the threads and NumPy's library

    def measure(self) -> float:
        """Milliseconds of one kernel, the median of several."""
        with self._controller.limit(limits=1, user_api="blas"):
            return float(np.median([self._once_ms() for _ in range(_REPEATS)]))

    def _once_ms(self) -> float:
        tasks = [self._pool.submit(self._multiply, *operands) for operands in self._operands]
        self._start.wait()
        begin = time.perf_counter()
        for task in tasks:
            task.result()
        return (time.perf_counter() - begin) * 1e3

    def _multiply(self, one: np.ndarray, other: np.ndarray, product: np.ndarray) -> None:
        self._start.wait()
        np.matmul(one, other, out=product)

    def close(self) -> None:
        """Ends the threads, also those that an interrupted measurement left waiting."""
        self._start.abort()
        self._pool.shutdown()
