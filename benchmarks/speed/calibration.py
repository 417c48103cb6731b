"""How fast the machine is at this moment: a fixed piece of work, timed between the turns of the variants.

It is a product of two float32 matrices that fit into the second-level cache, again and again, on each core that the variants
use, each on one thread. All of them start together and the last one counts, so a core that another process has taken shows,
and so do clocks that went down. What it measures means nothing in itself; only its changes do. On shared machines the speed
also changes from one millisecond to the next, which a turn averages out; so does this, by lasting some fifty of them.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from detr_export.runtimes.errors import missing_extra

try:
    from threadpoolctl import ThreadpoolController
except ImportError as error:
    raise missing_extra("threadpoolctl", "bench") from error

_SIDE = 384  # of the matrices: 0.11 GFLOP, one to two milliseconds on a core of today
_REPEATS = 64  # products of one calibration


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
        self._start = threading.Barrier(threads)
        self._controller = ThreadpoolController()
        self.measure()  # starts the threads and NumPy's library

    def measure(self) -> float:
        """Milliseconds of one product, the mean of many, from the first thread's start to the last one's end."""
        with self._controller.limit(limits=1, user_api="blas"):
            times = list(self._pool.map(self._multiply, self._operands))
        return (max(end for _, end in times) - min(start for start, _ in times)) / _REPEATS * 1e3

    def _multiply(self, operands: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[float, float]:
        """When the products of one thread began and ended, in seconds."""
        self._start.wait()
        begin = time.perf_counter()
        for _ in range(_REPEATS):
            np.matmul(operands[0], operands[1], out=operands[2])
        return begin, time.perf_counter()

    def close(self) -> None:
        """Ends the threads, also those that an interrupted measurement left waiting."""
        self._start.abort()
        self._pool.shutdown()
