"""What becomes of a request when the model is slow or fails, the client is slow or leaves, or the server stops.

The model is one that answers when the test says so; `test_server.py` has a real one.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import BackendError, Detections, InputError, Metadata
from detr_export.runtimes.serving import service as service_module
from detr_export.runtimes.serving.app import make_app
from detr_export.runtimes.serving.identity import identify
from detr_export.runtimes.serving.metrics import Metrics
from detr_export.runtimes.serving.options import ServerOptions
from detr_export.runtimes.serving.service import Service
from detr_export.runtimes.session import TensorSpec, largest_batch
from tests.runtimes.serving.asgi import Call, begin, until

SECONDS = 30


class SlowPredictor:
    """Finds nothing in any picture, once `go` is set."""

    def __init__(self) -> None:
        self.tasks = ("detection",)
        self.metadata = Metadata("detection", {0: "thing"}, {}, True)
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.runs: list[int] = []  # pictures of each
        self.draws_masks = False

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def predict(self, images: list[Image.Image], task: str, threshold: float, *, batch_size: int) -> list[Detections]:
        self.runs.append(len(images))
        assert self.go.wait(SECONDS)
        if self.error is not None:
            raise self.error
        nothing = np.zeros(0, np.float32)
        return [Detections(nothing, nothing, nothing, (), (image.height, image.width)) for image in images]


@contextmanager
def serving(**options: Any) -> Iterator[tuple[Any, Service, SlowPredictor]]:
    """An application, its service and its model."""
    predictor: Any = SlowPredictor()
    with Service(predictor, ServerOptions(**options), Metrics()) as service:
        try:
            yield make_app(service, identify(predictor, "folder/slow.onnx", "cpu", "1.0")), service, predictor
        finally:
            predictor.go.set()


def png(width: int = 8, height: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def predict(app: Any, data: bytes | None = None, query: str = "", **headers: str) -> Call:
    return begin(app, "POST", "/predict", data, query, **headers)


def value(service: Service, name: str, **labels: str) -> float:
    return service.metrics._registry.get_sample_value(name, labels) or 0.0


def run(test: Callable[..., Awaitable[None]], **options: Any) -> None:
    with serving(**options) as parts:
        asyncio.run(test(*parts))


def test_all_places_are_taken() -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        first, second = predict(app), predict(app, png(), content_length="3")  # a head is enough
        predictor.go.clear()
        await until(lambda: value(service, "detr_requests_in_progress") == 2 and predictor.runs)
        third = predict(app, png())
        status, document = await third.answer()
        assert (status, third.headers["retry-after"]) == (429, "1")
        assert document == {"error": "all 2 places of the server are taken; try again later"}
        status, document = await begin(app, "GET", "/health").answer()  # which needs no place
        assert (status, document["status"]) == (200, "ok")
        predictor.go.set()
        first.body(png())
        assert [(await call.answer())[0] for call in (first, second)] == [200, 200]
        assert (await predict(app, png()).answer())[0] == 200  # there is a place again
        counted = {status: value(service, "detr_requests_total", status=status) for status in ("200", "429")}
        assert counted == {"200": 3, "429": 1}

    run(test, places=2)


def test_a_client_that_leaves_frees_its_place() -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        predictor.go.clear()
        running = predict(app, png())
        await until(lambda: predictor.runs == [1])
        waiting = predict(app, png())
        await until(lambda: value(service, "detr_queue_length") == 1)
        sending = predict(app)
        sending.body(png()[:10], more=True)
        await until(lambda: value(service, "detr_requests_in_progress") == 3)
        for call in (waiting, sending, running):
            call.leave()
            await call.task
        assert value(service, "detr_requests_in_progress") == value(service, "detr_queue_length") == 0
        assert value(service, "detr_requests_total", status="499") == 3
        last = predict(app, png())
        await until(lambda: value(service, "detr_queue_length") == 1)
        predictor.go.set()
        assert (await last.answer())[0] == 200
        assert predictor.runs == [1, 1]  # the one that waited never ran

    run(test, places=3)


def test_a_model_that_is_too_slow() -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        predictor.go.clear()
        status, document = await predict(app, png()).answer()
        assert (status, document["error"]) == (504, "no result after 0.2 seconds; try again later")
        assert value(service, "detr_requests_in_progress") == 0
        predictor.go.set()

    run(test, timeout=0.2)


def test_a_body_that_is_too_slow() -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        call = predict(app)
        call.body(png()[:10], more=True)
        status, document = await call.answer()
        assert (status, document["error"]) == (408, "the body did not arrive within 0.2 seconds; send it faster")
        assert value(service, "detr_requests_in_progress") == 0

    run(test, timeout=0.2)


def test_stopping_refuses_what_is_new_and_answers_what_is_there() -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        predictor.go.clear()
        before = [predict(app, png()) for _ in range(5)]
        await until(lambda: value(service, "detr_requests_in_progress") == 5)
        service.stopping = True
        status, document = await predict(app, png()).answer()
        assert (status, document["error"]) == (503, "the server is stopping; ask another one")
        status, document = await begin(app, "GET", "/health").answer()
        assert (status, document["status"]) == (503, "stopping")
        predictor.go.set()
        assert [(await call.answer())[0] for call in before] == [200] * 5

    run(test)


def test_a_request_that_outlives_the_grace() -> None:
    """uvicorn cancels it, and it is answered all the same."""

    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        predictor.go.clear()
        call = predict(app, png())
        await until(lambda: predictor.runs)
        call.task.cancel()
        status, document = await call.answer()
        assert (status, document["error"]) == (503, "the server stopped before the result was there; ask another one")
        assert service.cut_short

    run(test)


@pytest.mark.parametrize(
    ("error", "status", "message", "logged"),
    [
        (InputError("height is 8; expected 16"), 400, "height is 8; expected 16", ""),
        (BackendError("the GPU is gone"), 500, "the GPU is gone", "BackendError: the GPU is gone"),
        (
            ValueError("secret\nof the house"),
            500,
            "the server failed on this request; its log says why",
            "ValueError: secret of the house",
        ),
    ],
)
def test_errors_of_the_model(
    error: Exception, status: int, message: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        predictor.error = error
        assert await predict(app, png()).answer() == (status, {"error": message})
        predictor.error = None
        assert (await predict(app, png()).answer())[0] == 200  # the model's thread has survived

    run(test)
    assert [record.getMessage() for record in caplog.records] == ([f"error: a request failed: {logged}"] if logged else [])
    assert all(record.exc_info is None for record in caplog.records)


def test_decoding_does_not_block_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    go, decode = threading.Event(), service_module.decode_picture

    def slowly(data: bytes, *arguments: Any) -> Image.Image:
        assert go.wait(SECONDS)
        return decode(data, *arguments)

    monkeypatch.setattr(service_module, "decode_picture", slowly)

    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        call = predict(app, png())
        await until(lambda: value(service, "detr_requests_in_progress") == 1)
        assert (await begin(app, "GET", "/health").answer())[0] == 200
        assert not call.task.done()
        go.set()
        assert (await call.answer())[0] == 200

    run(test)


def test_a_body_is_not_read_beyond_the_limit() -> None:
    async def test(app: Any, service: Service, predictor: SlowPredictor) -> None:
        for form in ("image/png", "multipart/form-data; boundary=b"):
            call = predict(app, content_type=form)
            call.body(b"--b\r\n" + b"a" * 600, more=True)
            await asyncio.sleep(0)
            call.body(b"a" * 600, more=True)
            status, document = await call.answer()
            assert (status, document["error"]) == (413, "the body is too large; expected at most 1000 bytes")
        status, _ = await predict(app, content_length="1001").answer()  # no body is needed to see it
        assert status == 413

    run(test, max_bytes=1000)


def test_a_batch_is_no_larger_than_the_model_takes() -> None:
    predictor: Any = SlowPredictor()
    with Service(predictor, ServerOptions(max_batch=8), Metrics(), largest_batch=2) as service:
        app = make_app(service, identify(predictor, "slow.onnx", "cpu", "1.0"))

        async def test() -> None:
            predictor.go.clear()
            calls = [predict(app, png())]
            await until(lambda: predictor.runs)
            calls += [predict(app, png()) for _ in range(4)]
            await until(lambda: value(service, "detr_queue_length") == 4)
            predictor.go.set()
            assert [(await call.answer())[0] for call in calls] == [200] * 5

        asyncio.run(test())
    assert predictor.runs == [1, 2, 2]


@pytest.mark.parametrize(
    ("device", "range_of_batches", "size", "expected"),
    [
        ("cpu", (1, None), "batch", None),
        ("cuda:1", (1, 4), "batch", 4),
        ("cpu", (1, 4), 2, 2),
        ("tensorrt", (1, None), "batch", 1),  # ONNX Runtime builds its engine for one picture
    ],
)
def test_the_largest_batch_of_a_model(
    device: str, range_of_batches: tuple[int, int | None], size: int | str, expected: int | None
) -> None:
    metadata = Metadata("detection", {}, {}, True, ranges={"batch": range_of_batches})
    inputs = (TensorSpec("pixel_values", "float32", (size, 3, "height", "width")),)
    session: Any = SimpleNamespace(inputs=inputs, metadata=metadata)
    assert largest_batch(session, device) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2.0}, "threshold is 2.0; expected a number from 0 to 1"),
        ({"max_batch": 0}, "max_batch is 0; expected at least 1"),
        ({"timeout": 0.0}, "timeout is 0.0; expected more than 0 seconds"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"grace": float("inf")}, "grace is inf; expected 0 or more seconds"),
        ({"max_pixels": 10**9}, "expected at most 89478485; .*--limit pixels=N"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServerOptions(**options)
