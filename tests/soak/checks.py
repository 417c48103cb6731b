"""What holds for a predictor that many threads share, as functions that say what they saw.

`tests.soak` calls them for a long time with the packaged demo; tests/hostile/test_sharing.py for a moment with a tiny graph.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_export import Predictor

Arrays = Mapping[str, np.ndarray]
_THRESHOLDS = {"detection": 0.0, "panoptic": 0.3}
_PATIENCE = 60.0  # seconds that another process may take


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures of blocks in random colours, no two of them of the same size."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        height, width = 48 + 8 * number % 96, 64 + 16 * number % 160
        blocks = draw.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        found.append(np.ascontiguousarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width]))
    return found


def result(predictor: Predictor, picture: np.ndarray, task: str) -> dict[str, np.ndarray]:
    """All numbers of a result, by name."""
    found = predictor.predict(picture, task, _THRESHOLDS[task])
    if task == "detection":
        return {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}
    return {"map": found.map, "scores": np.array([segment.score for segment in found.segments], np.float64)}


def difference(found: Arrays, expected: Arrays) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    worst = 0.0
    for name, value in expected.items():
        if found[name].shape != value.shape:
            return float("inf")
        if value.size:
            worst = max(worst, float(np.abs(found[name].astype(np.float64) - value).max()))
    return worst


@dataclass
class Shared:
    """What came of many threads."""

    runs: int
    unequal: int  # results that are not bit for bit those of one thread
    worst: float  # largest absolute difference
    errors: dict[str, int]  # exceptions, by class


def shared(
    predictor: Predictor, images: Sequence[np.ndarray], tasks: Sequence[str], threads: int, go_on: Callable[[int], bool]
) -> Shared:
    """Compares the results of threads with those of one.

    Args:
        predictor: is shared.
        images: every thread takes all of them, each from another one on.
        tasks: as in `Predictor.predict`.
        threads: how many there are.
        go_on: whether a thread that has done so many runs does another one.
    """
    jobs = [(number, task) for number in range(len(images)) for task in tasks]
    expected = {job: result(predictor, images[job[0]], job[1]) for job in jobs}
    barrier = threading.Barrier(threads)

    def work(first: int) -> tuple[int, int, float, Counter[str]]:
        barrier.wait()
        done = unequal = 0
        worst, errors = 0.0, Counter[str]()
        while go_on(done):
            job = jobs[(first + done) % len(jobs)]
            try:
                off = difference(result(predictor, images[job[0]], job[1]), expected[job])
                worst, unequal = max(worst, off), unequal + (off > 0)
            except Exception as error:  # what came is told
                errors[f"{type(error).__name__}: {error!s:.80}"] += 1
            done += 1
        return done, unequal, worst, errors

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(work, range(0, threads * 3, 3)))
    errors = sum((part[3] for part in parts), Counter[str]())
    return Shared(sum(part[0] for part in parts), sum(part[1] for part in parts), max(part[2] for part in parts), errors)


def closed_while_running(file: Path, images: Sequence[np.ndarray], tasks: Sequence[str], threads: int) -> Counter[str]:
    """Closes a predictor while threads use it. Counts how their last calls ended: "BackendError", or something worse."""
    predictor = Predictor.load(file, threads=1)
    started = threading.Barrier(threads + 1)

    def work(first: int) -> str:
        result(predictor, images[first % len(images)], tasks[0])
        started.wait()
        try:
            for number in range(first, first + 100_000):
                result(predictor, images[number % len(images)], tasks[number % len(tasks)])
        except Exception as error:
            return type(error).__name__
        return "never ended"

    with ThreadPoolExecutor(threads) as pool:
        ends = [pool.submit(work, first) for first in range(threads)]
        started.wait()
        predictor.close()
        return Counter(end.result() for end in ends)


def used_after_close(file: Path, image: np.ndarray, tasks: Sequence[str]) -> Counter[str]:
    """How calls of a closed predictor end; closing again does nothing."""
    predictor = Predictor.load(file, threads=1)
    predictor.close()
    predictor.close()
    return Counter(_end(predictor, image, task) for task in tasks)


def collected_while_running(file: Path, images: Sequence[np.ndarray], runs: int) -> float:
    """Threads drop predictors without closing them, while garbage is collected. The largest difference of their results."""
    with Predictor.load(file, threads=1) as predictor:
        expected = [result(predictor, image, "detection") for image in images]
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            gc.collect()
            time.sleep(0.001)

    def work(first: int) -> float:
        worst = 0.0
        for number in range(first, first + runs):
            index = number % len(images)
            worst = max(
                worst, difference(result(Predictor.load(file, threads=1), images[index], "detection"), expected[index])
            )
        return worst

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            return max(pool.map(work, range(4)))
    finally:
        stop.set()
        collector.join()


def held() -> dict[str, int]:
    """File descriptors and threads of this process."""
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}


def cycles(file: Path, image: np.ndarray, count: int) -> dict[str, int]:
    """Opens, uses and closes; says how many more descriptors and threads there are than after the second time."""
    before: dict[str, int] = {}
    for number in range(count):
        with Predictor.load(file) as predictor:
            result(predictor, image, "detection")
        if number == 1:
            gc.collect()  # what was dropped before
            before = held()
    gc.collect()
    return {name: value - before[name] for name, value in held().items()}


def memory() -> float:
    """Memory of this process in MB, the shared libraries included."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


FORKED = ("run", "thread", "close", "drop")  # what a forked process does


def forked(predictor: Predictor, image: np.ndarray, action: str) -> str:
    """What happens in a process that is forked off after a model was opened: the error's class, "done", or how it died."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sender, _act(predictor, image, action).encode())
        finally:
            os._exit(0)
    os.close(sender)
    end, status = time.monotonic() + _PATIENCE, None
    while status is None and time.monotonic() < end:
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with open(receiver, "rb") as stream:
        told = stream.read().decode()
    return "hangs" if status is None else told if status == 0 else f"died of {status}"


def _act(predictor: Predictor, image: np.ndarray, action: str) -> str:
    try:
        if action == "run":
            result(predictor, image, "detection")
        elif action == "thread":  # the model in a thread beside the others
            list(predictor.predict_stream([image]))
        elif action == "close":
            predictor.close()
        else:
            predictor.__dict__.clear()
            gc.collect()
    except BaseException as error:
        return type(error).__name__
    return "done"


def spawned(predictor: Predictor, image: np.ndarray) -> float:
    """The largest difference between this process and one that got the predictor by pickle."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(_detect, (predictor, image)).get(_PATIENCE)
    return difference(found, result(predictor, image, "detection"))


def _end(predictor: Predictor, image: np.ndarray, task: str) -> str:
    try:
        result(predictor, image, task)
    except Exception as error:
        return type(error).__name__
    return "result"


def _detect(predictor: Predictor, image: np.ndarray) -> dict[str, Any]:
    with predictor:
        return result(predictor, image, "detection")
