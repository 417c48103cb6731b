"""Threads must not change a result, and their number can be set."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes.errors import OptionError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.threads import MAX_THREADS, THREADS_VARIABLE, in_threads, processing_threads


def test_the_variable_is_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    assert 1 <= processing_threads() <= MAX_THREADS
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    assert processing_threads() == 7


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_other_values_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, text)
    with pytest.raises(OptionError, match=rf"{THREADS_VARIABLE} is {text!r}, expected a positive integer"):
        processing_threads()


def test_results_have_the_order_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    barrier = threading.Barrier(3, timeout=10)

    def work(item: int) -> tuple[int, int]:
        barrier.wait()  # three threads at once, or BrokenBarrierError
        return item, processing_threads()  # which get no threads of their own

    assert in_threads(work, range(6)) == [(item, 1) for item in range(6)]
    assert processing_threads() == 3


@pytest.mark.parametrize("threads", ["1", "2"])
def test_what_the_work_raises_comes_out(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, threads)
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0, 2])


@pytest.mark.parametrize("sizes", [[(300, 401)], [(300, 401), (70, 333), (600, 90)]])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_threads_change_no_pixel(sizes: list, data_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    processor = DetrImageProcessor(size={"shortest_edge": 331, "longest_edge": 700})
    batches = []
    for threads in ("1", "3"):
        monkeypatch.setenv(THREADS_VARIABLE, threads)
        batches.append(processor(images, return_tensors="np", data_format=data_format))
    for key in ("pixel_values", "pixel_mask"):
        assert np.array_equal(batches[0][key], batches[1][key])
