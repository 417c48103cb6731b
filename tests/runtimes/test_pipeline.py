"""Threads: results in order, a limited number of tasks, errors that arrive, and nothing that is left behind."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError

import numpy as np
import pytest

from detr_export.runtimes.pipeline import ModelThread, in_batches, in_order
from detr_export.runtimes.session import Session, TensorSpec


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def nothing() -> None:
    pass


def test_results_are_in_the_order_of_the_tasks() -> None:
    second = threading.Event()

    def work(task: int) -> int:
        if task == 0:
            assert second.wait(20)  # the first one ends after the second one
        if task == 1:
            second.set()
        return task * task

    assert list(in_order(work, range(20), 3, nothing)) == [task * task for task in range(20)]


def test_few_tasks_are_taken_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = in_order(lambda task: task, tasks(), 3, nothing)
    for number in range(1, 30):
        assert next(results) == number
        assert taken < number + 2 * 3
    results.close()


def test_tasks_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=20)
    assert len(list(in_order(lambda _: barrier.wait(), range(3), 3, nothing))) == 3


def test_an_exception_comes_in_its_place_and_stops_the_rest() -> None:
    started = []

    def work(task: int) -> int:
        started.append(task)
        if task == 4:
            raise ZeroDivisionError("four")
        return task

    results = in_order(work, range(1000), 2, nothing)
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError, match="four"):
        next(results)
    assert len(started) < 20


def test_what_runs_is_stopped_before_it_is_waited_for() -> None:
    stopped = threading.Event()
    results = in_order(lambda task: task == 0 or stopped.wait(20), range(100), 2, stopped.set)
    next(results)
    results.close()
    assert stopped.is_set()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_of_batches_are_in_the_order_of_the_tasks(workers: int) -> None:
    seen: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        seen.append(batch)
        return [task * task for task in batch]

    sizes = [(8, 8), (9, 9), None]
    tasks = ((task, sizes[task % 3]) for task in range(20))
    assert list(in_batches(work, tasks, 4, 0.0, workers)) == [task * task for task in range(20)]
    assert sorted(map(len, seen)) == [1] * 6 + [3, 3, 4, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_of_a_batch_arrives(workers: int) -> None:
    results = in_batches(
        lambda batch: [1 // (4 - task) for task in batch], ((task, (8, 8)) for task in range(9)), 2, 0.0, workers
    )
    assert list(itertools.islice(results, 4)) == [0, 0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


class Threads(Session):
    """Notes the thread of each run, and waits there if it is told to."""

    inputs = (TensorSpec("x", "float32", ("n",)),)
    outputs = (TensorSpec("y", "float32", ("n",)),)

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.running, self.go_on = threading.Event(), threading.Event()
        self.closed = False

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(threading.current_thread().name)
        self.running.set()
        assert self.go_on.wait(20)
        if inputs["x"][0] < 0:
            raise ZeroDivisionError("negative")
        return {"y": inputs["x"] + 1}

    def close(self) -> None:
        self.closed = True


def test_a_model_runs_in_one_thread() -> None:
    session = Threads()
    session.go_on.set()
    with ModelThread(session) as model:
        assert (model.inputs, model.outputs) == (session.inputs, session.outputs)
        inputs = ({"x": np.full(2, number, np.float32)} for number in range(9))
        found = [result["y"][0] for result in in_order(model.run, inputs, 3, nothing)]
        with pytest.raises(ZeroDivisionError, match="negative"):
            model.run({"x": -np.ones(1, np.float32)})
    assert found == list(range(1, 10))
    assert len(set(session.seen)) == 1
    assert session.seen[0] != threading.current_thread().name
    assert not session.closed


def test_a_model_that_is_stopped_starts_no_more_runs() -> None:
    session = Threads()
    with ModelThread(session) as model:
        results = in_order(model.run, ({"x": np.ones(1, np.float32)} for _ in range(50)), 3, model.stop)
        opener = threading.Thread(target=lambda: (session.running.wait(20), model.stop(), session.go_on.set()))
        opener.start()
        next(results)  # the run that was going on is finished
        with pytest.raises((CancelledError, RuntimeError)):
            next(results)
        opener.join()
    assert len(session.seen) == 1
