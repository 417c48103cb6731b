"""How fast the machine is at this moment: a fixed piece of work, timed between the turns of the variants.

The work is a product of two float32 matrices that fit into the second-level cache, repeated many times. Each core that the
variants use does it on a thread of its own. All threads start together and the last one to finish counts. So it shows when
another process has taken a core, and when clocks went down. The time means nothing in itself; only its changes do. On
shared machines the speed also changes from one millisecond to the next. A turn averages that out, and so does this work,
which lasts some fifty milliseconds.
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
    """The calibration kernel with its operands; call `measure` while nothing else runs.

    Args:
        threads: how many cores the variants use.
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
        """Milliseconds of one product: from the first thread's start to the last one's end, divided by the repeats."""
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
        """Ends the threads, also those that still wait because a measurement was interrupted."""
        self._start.abort()
        self._pool.shutdown()
