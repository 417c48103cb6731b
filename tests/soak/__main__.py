"""`python -m tests.soak`: one predictor of the packaged demo under many threads, and what it leaves behind, as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from detr_export import Predictor
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from tests.soak import checks

_TASKS = ("detection", "panoptic")
_WARM_UP = 0.2  # share of the time after which memory is measured
_SAMPLES = 200  # of the memory
# Of the fitted growth over the rest of the time, in MB: noise of the allocator, which keeps what it gave to large arrays.
_MOST_GROWTH = 24.0
_MOST_DIFFERENCE = 1e-4  # pixels or scores; a map has to be equal


class MemoryWatch(threading.Thread):
    """Looks at this process's memory now and then."""

    def __init__(self, seconds: float) -> None:
        super().__init__(daemon=True)
        self._seconds, self._stop_now = seconds, threading.Event()
        self.samples: list[tuple[float, float]] = []  # seconds, MB

    def run(self) -> None:
        """Until `stop`."""
        start = time.monotonic()
        while not self._stop_now.wait(self._seconds / _SAMPLES):
            self.samples.append((time.monotonic() - start, checks.memory()))

    def stop(self) -> dict[str, Any]:
        """The fit of what it saw after the warm-up."""
        self._stop_now.set()
        self.join()
        seconds, sizes = np.array([item for item in self.samples if item[0] >= _WARM_UP * self._seconds]).T
        slope = float(np.polyfit(seconds, sizes, 1)[0])
        growth = slope * float(seconds[-1] - seconds[0])
        curve = [round(size, 1) for _, size in self.samples[:: _SAMPLES // 20]]
        return {"first": sizes[0], "last": sizes[-1], "growth": growth, "per_hour": slope * 3600, "curve": curve}


def soak(file: Path, minutes: float, threads: int) -> dict[str, Any]:
    """Runs all checks; most of the time goes to the threads that share a predictor."""
    images, seconds = checks.pictures(24), 60 * minutes
    found: dict[str, Any] = {"minutes": minutes, "threads": threads}
    with Predictor.load(file, threads=1) as predictor:
        watch = MemoryWatch(seconds)
        watch.start()
        end = time.monotonic() + seconds
        shared = checks.shared(predictor, images, _TASKS, threads, lambda _: time.monotonic() < end)
        found["shared"] = {**asdict(shared), "tasks": _TASKS, "pictures": len(images)}
        found["memory_mb"] = watch.stop()
        found["forked"] = {action: checks.forked(predictor, images[0], action) for action in checks.FORKED}
        found["spawned_difference"] = checks.spawned(predictor, images[0])
    closings = max(10, round(4 * minutes))
    ends = [checks.closed_while_running(file, images, _TASKS, threads) for _ in range(closings)]
    found["closed_while_running"] = {name: sum(end[name] for end in ends) for name in {name for end in ends for name in end}}
    found["used_after_close"] = dict(checks.used_after_close(file, images[0], _TASKS))
    found["collected_while_running_difference"] = checks.collected_while_running(file, images[:4], max(5, round(minutes)))
    count = max(50, round(10 * minutes))
    before = checks.memory()
    found["cycles"] = {"count": count, **checks.cycles(file, images[0], count)}
    found["cycles"]["memory_mb"] = round(checks.memory() - before, 1)
    found["problems"] = problems(found)
    return found


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    shared, cycles = found["shared"], found["cycles"]
    wrong = {
        "threads saw exceptions": bool(shared["errors"]),
        "threads saw other results than one thread": shared["worst"] > _MOST_DIFFERENCE,
        "memory grew": found["memory_mb"]["growth"] > _MOST_GROWTH,
        "a forked process did not get a BackendError, or did not end well": found["forked"]
        != {"run": "BackendError", "thread": "BackendError", "close": "done", "drop": "done"},
        "a spawned process saw another result": found["spawned_difference"] > _MOST_DIFFERENCE,
        "a call during or after close ended otherwise than with BackendError": {*found["closed_while_running"]}
        | {*found["used_after_close"]}
        != {"BackendError"},
        "a result changed while garbage was collected": found["collected_while_running_difference"] > _MOST_DIFFERENCE,
        "opening and closing leaves descriptors, threads or memory behind": max(cycles["descriptors"], cycles["threads"]) > 0
        or cycles["memory_mb"] > _MOST_GROWTH,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the threads that share a predictor")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--model", type=Path, help="an ONNX file that draws masks; the packaged demo if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = given.model or Path(folder) / "demo.onnx"
        if given.model is None:
            export_onnx(load_checkpoint("demo"), file, ExportOptions(verify=False))
        found = soak(file, given.minutes, given.threads)
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["problems"] else 0)


if __name__ == "__main__":
    main()
