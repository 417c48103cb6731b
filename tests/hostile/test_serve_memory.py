"""`serve --max-memory`: pictures are refused by what they would take, before they are decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.serving.batching import Batcher, Job
from detr_export.runtimes.serving.memory import Memory, Size
from detr_export.runtimes.serving.metrics import Metrics
from detr_export.runtimes.serving.options import ServerOptions
from detr_export.runtimes.serving.refusals import Refusal
from tests.runtimes.serving.asgi import until
from tests.runtimes.serving.test_service import SlowPredictor, png, predict, run

PIXEL = 16 + 332  # bytes, of a model that gets pictures as they are and draws no masks


def memory(limit: int | None, segments: bool = False, model_size: Callable[[Size], Size] = lambda size: size) -> Memory:
    return Memory(model_size, segments, limit)


@pytest.mark.parametrize(
    ("size", "segments", "needed"),
    [
        ((10, 10), False, 100 * PIXEL),
        ((10, 10), True, 100 * (PIXEL + 16)),
        ((1, 1), False, PIXEL),
        ((7, 3), False, 21 * PIXEL),
    ],
)
def test_a_picture_that_takes_exactly_the_limit_is_admitted(size: Size, segments: bool, needed: int) -> None:
    with memory(needed, segments).place() as take:
        take(size)
    with (
        memory(needed - 1, segments).place() as take,
        pytest.raises(Refusal, match=rf"would take about {needed} bytes; expected at most {needed - 1}") as caught,
    ):
        take(size)
    assert caught.value.status == 413


def test_what_the_model_gets_counts_at_its_size() -> None:
    with (
        memory(1000, model_size=lambda size: (800, 800)).place() as take,
        pytest.raises(Refusal, match=f"about {16 + 332 * 640_000} bytes"),
    ):
        take((1, 1))


def test_pictures_share_the_limit_and_give_it_back() -> None:
    budget = memory(250 * PIXEL)
    with budget.place() as first, budget.place() as second, budget.place() as third:
        first((10, 10))
        second((10, 10))
        with pytest.raises(Refusal, match="taken by other pictures; try again later") as caught:
            third((10, 10))
        assert caught.value.status == 429
        assert caught.value.headers == {"Retry-After": "1"}
        third((7, 7))  # that one fits
    with budget.place() as take:
        take((15, 16))


def test_without_a_limit_nothing_is_refused_or_looked_at() -> None:
    def model_size(size: Size) -> Size:
        raise AssertionError

    with memory(None, model_size=model_size).place() as take:
        take((10**6, 10**6))


@pytest.mark.parametrize(
    ("sizes", "allowed"),
    [
        ([(10, 10)] * 4, True),
        ([(10, 10)] * 5, False),
        ([(40, 1), (1, 5)], True),
        ([(40, 1), (1, 6)], False),
        ([(20, 20)], True),
    ],
)
def test_a_batch_counts_with_its_padding(sizes: list[Size], allowed: bool) -> None:
    assert memory(400 * 332).allows(sizes) is allowed


@pytest.mark.parametrize(
    ("sizes", "batch", "full"),
    [
        ([(10, 10)] * 2, 2, False),
        ([(10, 10)] * 3, 3, True),  # the most pictures
        ([(10, 10), (40, 10)], 1, True),
        ([(40, 10), (10, 10)], 1, True),
        ([(60, 60), (1, 1)], 1, True),  # the first always runs
        ([(10, 10), (20, 10), (5, 5)], 2, True),
    ],
)
def test_batches_are_kept_within_the_limit(sizes: list[Size], batch: int, full: bool) -> None:
    batcher = Batcher(lambda *_: [], 3, 0.0, True, Metrics(), memory(500 * 332).allows)
    jobs = [Job("detection", 0.5, Image.new("RGB", (width, height)), None) for height, width in sizes]
    batcher._waiting = [*jobs]
    assert batcher._batch_of(jobs[0]) == (jobs[:batch], full)


def test_a_server_refuses_by_the_header_alone() -> None:
    async def test(app: Any, service: Any, predictor: SlowPredictor) -> None:
        cut = png(100, 100)[:60]  # the header, and no pixels: to decode it would be an error
        status, document = await predict(app, cut).answer()
        assert status == 413
        assert document["error"].startswith("the picture of 100x100 pixels would take about 3480000 bytes; expected at most")
        assert (await predict(app, png(10, 10)).answer())[0] == 200

    run(test, max_memory=1000 * PIXEL)


def test_a_server_gives_the_memory_back() -> None:
    async def test(app: Any, service: Any, predictor: SlowPredictor) -> None:
        predictor.go.clear()
        first = predict(app, png(30, 30))
        await until(lambda: predictor.runs == [1])
        assert (await predict(app, png(30, 30)).answer())[0] == 429
        predictor.go.set()
        assert (await first.answer())[0] == 200
        assert (await predict(app, png(30, 30)).answer())[0] == 200

    run(test, max_memory=1000 * PIXEL)


@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_is_positive(value: int) -> None:
    with pytest.raises(InputError, match=f"max_memory is {value}; expected at least 1"):
        ServerOptions(max_memory=value)
