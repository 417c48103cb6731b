"""`Service`: what becomes of a request for a prediction, from its head to its answer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from PIL import Image
from starlette.requests import Request

from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.serving.batching import Batcher
from detr_export.runtimes.serving.bodies import picture_bytes
from detr_export.runtimes.serving.formats import encoded, wanted_format
from detr_export.runtimes.serving.memory import Memory
from detr_export.runtimes.serving.metrics import Metrics
from detr_export.runtimes.serving.options import ServerOptions
from detr_export.runtimes.serving.pictures import decode_picture
from detr_export.runtimes.serving.refusals import (
    BAD_REQUEST,
    CLIENT_GONE,
    RETRY_AFTER,
    STOPPING,
    TIMED_OUT,
    TOO_LATE,
    TOO_MANY,
    Refusal,
)
from detr_export.runtimes.tasks import TASKS
from detr_export.runtimes.thresholds import require_shares

Value = TypeVar("Value")
_MOST_DECODERS = 8  # threads


@dataclass(frozen=True)
class Answer:
    """A result in the form that the client wants."""

    media_type: str
    body: bytes


class Service:
    """Predicts for clients. Start it with `with`; leaving finishes what is in the queue.

    A request holds a place from its head to its answer, so that the pictures in memory are limited. The event loop only
    waits: other threads decode and draw, and one more runs the model.

    Args:
        predictor: the model; the caller closes it.
        options: limits and habits.
        metrics: counts.
        largest_batch: that the model takes; None for any.

    Attributes:
        stopping: whether new requests are refused.
        cut_short: whether a request was given up because the server ended.
    """

    def __init__(
        self, predictor: Predictor, options: ServerOptions, metrics: Metrics, largest_batch: Optional[int] = None
    ) -> None:
        self.tasks = predictor.tasks
        self.options = options
        self.metrics = metrics
        self.stopping = False
        self.cut_short = False
        self._taken = 0  # places
        max_batch = options.max_batch if largest_batch is None else min(options.max_batch, largest_batch)

        def run(task: str, pictures: list[Image.Image], threshold: float) -> list[Any]:
            found: list[Any] = predictor.predict([*pictures], task, threshold, batch_size=max_batch)
            return found

        self._memory = Memory(predictor.model_size, predictor.draws_masks, options.max_memory)
        self._batcher = Batcher(run, max_batch, options.max_wait, options.mix_sizes, metrics, self._memory.allows)
        self._threads = ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1), "pictures")

    def __enter__(self) -> Service:
        self._batcher.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, seconds: Optional[float] = None) -> bool:
        """Finishes what is in the queue. Returns whether that was done within `seconds`."""
        self.stopping = True
        self._threads.shutdown(wait=False)
        return self._batcher.close(seconds)

    async def answer(
        self, request: Request, threshold: Optional[float], task: Optional[str], format: Optional[str]
    ) -> Answer:
        """Reads a picture from the body of a request, and predicts.

        Args:
            request: its body is still to be read.
            threshold, task, format: as in the query; None means the default.

        Raises:
            Refusal: there is no result, and this is why.
            DetrError: as in the method of `Predictor` for the task.
        """
        began = time.monotonic()
        with self._place():
            # What can be refused is refused before the body is read.
            threshold = self.options.threshold if threshold is None else threshold
            require_shares(threshold=threshold)
            task = self._known_task(task)
            form = wanted_format(format, request.headers.get("accept", ""))

            data = await _within(self.options.timeout, picture_bytes(request, self.options.max_bytes))
            if data is None:
                raise Refusal(TIMED_OUT, f"the body did not arrive within {self.options.timeout:g} seconds; send it faster")

            left = max(0.0, began + self.options.timeout - time.monotonic())
            answer = await _unless(_gone(request), _within(left, self._predict(data, task, threshold, form)))
            if answer is None:
                raise Refusal(
                    TOO_LATE, f"no result after {self.options.timeout:g} seconds; try again later", retry_after=RETRY_AFTER
                )
            self.metrics.answering.observe(time.monotonic() - began)
            return answer

    async def _predict(self, data: bytes, task: str, threshold: float, form: str) -> Answer:
        with self._memory.place() as admit:
            with self._batcher.expecting():
                began = time.monotonic()
                picture = await self._in_thread(decode_picture, data, self.options.max_pixels, admit)
                self.metrics.decoding.observe(time.monotonic() - began)
                job = self._batcher.submit(task, threshold, picture)
            try:
                result = await asyncio.wrap_future(job.result)
            finally:
                self._batcher.withdraw(job)  # does something only if this was cancelled
            return Answer(form, await self._in_thread(encoded, result, picture, form))

    def _in_thread(self, function: Any, *arguments: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _known_task(self, task: Optional[str]) -> str:
        if task is None:
            return self.tasks[0]
        if task not in TASKS:
            raise Refusal(BAD_REQUEST, f"task is {task!r}; expected one of {', '.join(self.tasks)}")
        if task not in self.tasks:
            raise Refusal(BAD_REQUEST, f"the model cannot do the task {task!r}; expected one of {', '.join(self.tasks)}")
        return task

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Holds a place. It is called by the event loop only.

        Raises:
            Refusal: 503, the server stops; 429, all places are taken.
        """
        if self.stopping:
            raise Refusal(STOPPING, "the server is stopping; ask another one", retry_after=RETRY_AFTER)
        if self._taken >= self.options.places:
            raise Refusal(
                TOO_MANY,
                f"all {self.options.places} places of the server are taken; try again later",
                retry_after=RETRY_AFTER,
            )
        self._taken += 1
        self.metrics.in_progress.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.in_progress.set(self._taken)


async def _within(seconds: float, work: Coroutine[Any, Any, Value]) -> Optional[Value]:
    """What `work` returns, or None if that takes longer; then it is cancelled."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        return None


async def _gone(request: Request) -> None:
    """Returns when the client has left. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(end: Coroutine[Any, Any, None], work: Coroutine[Any, Any, Value]) -> Value:
    """What `work` returns.

    Raises:
        Refusal: 499, `end` returned first; then `work` is cancelled.
    """
    tasks = (asyncio.ensure_future(end), asyncio.ensure_future(work))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1].done():
            return tasks[1].result()
        raise Refusal(CLIENT_GONE, "the client has left")
    finally:
        for task in tasks:
            task.cancel()
