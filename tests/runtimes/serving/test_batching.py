"""Which pictures share a batch, and what one of them can do to the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from detr_export.runtimes import InputError
from detr_export.runtimes.serving.batching import Batcher, Job
from detr_export.runtimes.serving.metrics import Metrics

SECONDS = 30


def picture(number: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (number, 0, 0))


class Model:
    """Answers with the red of each picture. Its first call waits until `go` is set, so that more pictures can arrive."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.calls: list[list[int]] = []

    def __call__(self, task: str, pictures: list[Image.Image], threshold: float) -> list[Any]:
        reds = [item.getpixel((0, 0))[0] for item in pictures]
        self.calls.append(reds)
        self.started.set()
        assert self.go.wait(SECONDS)
        if 13 in reds:
            raise InputError("13 is refused")
        return [(task, threshold, red) for red in reds]


@contextmanager
def busy(max_batch: int = 4, mix_sizes: bool = False, max_wait: float = 60) -> Iterator[tuple[Batcher, Model]]:
    """A batcher whose model runs the picture 0 until it is told to go on."""
    model = Model()
    with Batcher(model, max_batch, max_wait, mix_sizes, Metrics()) as batcher:
        batcher.submit("detection", 0.5, picture(0))
        assert model.started.wait(SECONDS)
        try:
            yield batcher, model
        finally:
            model.go.set()


def results(jobs: list[Job]) -> list[int]:
    return [job.result.result(SECONDS)[2] for job in jobs]


def test_pictures_that_wait_run_together_in_their_order() -> None:
    with busy() as (batcher, model):
        jobs = [batcher.submit("detection", 0.5, picture(number)) for number in range(1, 7)]
        model.go.set()
        assert results(jobs) == [1, 2, 3, 4, 5, 6]
    assert model.calls == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(("mix_sizes", "calls"), [(False, [[0], [1, 3], [2, 4]]), (True, [[0], [1, 2, 3, 4]])])
def test_sizes_share_a_batch_only_where_they_may(mix_sizes: bool, calls: list[list[int]]) -> None:
    with busy(mix_sizes=mix_sizes) as (batcher, model):
        jobs = [batcher.submit("detection", 0.5, picture(number, (8, 8 + number % 2))) for number in range(1, 5)]
        model.go.set()
        assert results(jobs) == [1, 2, 3, 4]
    assert model.calls == calls


def test_tasks_and_thresholds_are_not_mixed() -> None:
    asked = [("detection", 0.5), ("panoptic", 0.5), ("detection", 0.7), ("panoptic", 0.5)]
    with busy() as (batcher, model):
        jobs = [batcher.submit(task, threshold, picture(number)) for number, (task, threshold) in enumerate(asked, start=1)]
        model.go.set()
        assert [job.result.result(SECONDS)[:2] for job in jobs] == asked
    assert model.calls == [[0], [1], [2, 4], [3]]


def test_an_error_reaches_only_the_picture_that_causes_it() -> None:
    with busy() as (batcher, model):
        jobs = [batcher.submit("detection", 0.5, picture(number)) for number in (1, 13, 2)]
        model.go.set()
        assert results([jobs[0], jobs[2]]) == [1, 2]
        with pytest.raises(InputError, match="13 is refused"):
            jobs[1].result.result(SECONDS)
    assert model.calls == [[0], [1, 13, 2], [1], [13], [2]]


def test_a_picture_that_is_withdrawn_does_not_run() -> None:
    with busy() as (batcher, model):
        jobs = [batcher.submit("detection", 0.5, picture(number)) for number in (1, 2, 3)]
        batcher.withdraw(jobs[1])
        model.go.set()
        assert results([jobs[0], jobs[2]]) == [1, 3]
    assert jobs[1].result.cancelled()
    assert model.calls == [[0], [1, 3]]


def test_a_picture_waits_for_one_that_is_on_its_way() -> None:
    with busy() as (batcher, model):
        with batcher.expecting():
            first = batcher.submit("detection", 0.5, picture(1))
            model.go.set()
            with pytest.raises(TimeoutError):
                first.result.result(0.1)
            second = batcher.submit("detection", 0.5, picture(2))
        assert results([first, second]) == [1, 2]
    assert model.calls == [[0], [1, 2]]


def test_nobody_waits_longer_than_allowed() -> None:
    with busy(max_wait=0.01) as (batcher, model), batcher.expecting():
        model.go.set()
        assert results([batcher.submit("detection", 0.5, picture(1))]) == [1]


def test_closing_finishes_what_waits() -> None:
    with busy() as (batcher, model):
        jobs = [batcher.submit("detection", 0.5, picture(number)) for number in range(1, 10)]
        assert not batcher.close(0.01)
        model.go.set()
        assert batcher.close(SECONDS)
        assert all(job.result.done() for job in jobs)
        assert results(jobs) == list(range(1, 10))
