"""`Batcher`: pictures of different requests become one batch, which a thread of its own runs through the model.

A picture waits for others only while some are being decoded, and never longer than it may. So a single client does not wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

from PIL import Image

from detr_export.runtimes.serving.metrics import Metrics

RunTask = Callable[[str, list[Image.Image], float], list[Any]]


@dataclass(frozen=True, eq=False)
class Job:
    """One picture that waits for its result."""

    task: str
    threshold: float
    picture: Image.Image  # RGB
    size: Optional[tuple[int, int]]  # of all pictures of its batch; None if these may have any size
    since: float = field(default_factory=time.monotonic)
    result: Future[Any] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs share a batch if this is equal."""
        return self.task, self.threshold, self.size


class Batcher:
    """Runs jobs in batches, the oldest first. Start it with `with`; leaving finishes the jobs that wait.

    Args:
        run: gives one result for each picture: (task, pictures, threshold). It is called by one thread only.
        max_batch: pictures of one call.
        max_wait: seconds that the oldest job waits for others.
        mix_sizes: whether a batch may have pictures of different sizes.
        metrics: counts batches, pictures and seconds.
        allows: whether pictures of these (height, width) may be one batch.
    """

    def __init__(
        self,
        run: RunTask,
        max_batch: int,
        max_wait: float,
        mix_sizes: bool,
        metrics: Metrics,
        allows: Callable[[list[tuple[int, int]]], bool] = lambda sizes: True,
    ) -> None:
        self._allows = allows
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._mix_sizes = mix_sizes
        self._metrics = metrics
        self._changed = threading.Condition()  # guards the three below
        self._waiting: list[Job] = []
        self._coming = 0  # pictures that will be submitted soon
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="model", daemon=True)

    def __enter__(self) -> Batcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, seconds: Optional[float] = None) -> bool:
        """Lets the thread finish the jobs that wait, and end. Returns whether it ended within `seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While the block runs, a picture is on its way, and others may wait for it."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify_all()

    def submit(self, task: str, threshold: float, picture: Image.Image) -> Job:
        """Puts a picture into the queue. `Job.result` gets the result, or the error of `run`."""
        job = Job(task, threshold, picture, None if self._mix_sizes else picture.size)
        with self._changed:
            self._waiting.append(job)
            self._metrics.queue.set(len(self._waiting))
            self._changed.notify_all()
        return job

    def withdraw(self, job: Job) -> None:
        """Takes a job out of the queue if it is still there. One that runs is not stopped, but nobody gets its result."""
        job.result.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.queue.set(len(self._waiting))
                self._changed.notify_all()

    def _loop(self) -> None:
        while batch := self._next_batch():
            self._run_batch(batch)
            batch.clear()  # its pictures shall not stay in memory until the next one comes

    def _next_batch(self) -> list[Job]:
        """Waits for the next batch and takes it out of the queue. It is empty when there will be no more."""
        with self._changed:
            while True:
                if not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                batch, full = self._batch_of(first)
                left = first.since + self._max_wait - time.monotonic()
                if not full and self._coming and left > 0 and not self._closed:
                    self._changed.wait(left)
                    continue
                self._waiting = [job for job in self._waiting if job not in batch]
                self._metrics.queue.set(len(self._waiting))
                wanted = [job for job in batch if job.result.set_running_or_notify_cancel()]
                if wanted:
                    return wanted

    def _batch_of(self, first: Job) -> tuple[list[Job], bool]:
        """The jobs that can share a batch with the oldest one, and whether no more can."""
        batch: list[Job] = []
        for job in self._waiting:
            if job.kind == first.kind:
                sizes = [(other.picture.height, other.picture.width) for other in (*batch, job)]
                if batch and not self._allows(sizes):
                    return batch, True
                batch.append(job)
                if len(batch) == self._max_batch:
                    return batch, True
        return batch, False

    def _run_batch(self, batch: list[Job]) -> None:
        """Runs the jobs together. If that fails each runs alone, so that an error reaches only the job that causes it."""
        started = time.monotonic()
        try:
            results = self._run(batch[0].task, [job.picture for job in batch], batch[0].threshold)
        except Exception as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for job in batch:
                self._run_batch([job])
            return
        self._metrics.model.observe(time.monotonic() - started)
        self._metrics.batches.observe(len(batch))
        for job, result in zip(batch, results):
            self._metrics.waiting.observe(started - job.since)
            self._metrics.pictures.inc()
            self._metrics.pixels.inc(job.picture.width * job.picture.height)
            job.result.set_result(result)
