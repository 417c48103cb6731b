"""A process that serves with examples/ray_serve.py until its standard input ends; tests/test_ray_serve.py starts it.

Ray's warnings and signals stay in it. Without arguments it prints what a replica makes of some jobs, and starts no cluster.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import ray
import ray_serve
from PIL import Image
from ray import serve

from detr_export.runtimes.errors import BackendError

SMALL, LARGE, BROKEN = (8, 8), (16, 8), (13, 13)


class Recorder:
    """Instead of a predictor: notes what runs together, and finds the threshold."""

    def __init__(self) -> None:
        self.runs: list[list[tuple[int, int]]] = []

    def detect(self, pictures: list[Image.Image], threshold: float, batch_size: int) -> list[float]:
        assert batch_size == len(pictures)
        self.runs.append([picture.size for picture in pictures])
        if BROKEN in self.runs[-1]:
            raise BackendError("broken")
        return [threshold] * len(pictures)

    def close(self) -> None:
        self.runs.append([])


async def record() -> dict[str, Any]:
    """What a replica makes of batches, in types of JSON. Here, outside of Ray, nothing puts the jobs together."""
    replica = ray_serve.Detr.__new__(ray_serve.Detr)
    recorder = replica.predictor = Recorder()
    replica.failure = None

    async def find(*jobs: tuple[tuple[int, int], float]) -> list[str]:
        recorder.runs.clear()
        batch = [ray_serve.Job(Image.new("RGB", size), threshold) for size, threshold in jobs]
        return [str(found) for found in await ray_serve.Detr.find.__wrapped__(replica, batch)]

    def healthy() -> bool:
        try:
            replica.check_health()
        except BackendError:
            return False
        return True

    mixed = await find((SMALL, 0.5), (LARGE, 0.5), (SMALL, 0.5), (SMALL, 0.25), (LARGE, 0.5))
    mixed_runs = [*recorder.runs]
    health = [healthy()]
    broken = await find((SMALL, 0.5), (BROKEN, 0.5), (BROKEN, 0.5))
    health.append(healthy())
    await find((SMALL, 0.5))
    health.append(healthy())
    recorder.runs.clear()
    replica.__del__()
    closed = recorder.runs == [[]]
    try:
        ray_serve.Arguments(model="model.onnx", thread=2)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {
        "mixed": mixed,
        "mixed_runs": mixed_runs,
        "broken": broken,
        "health": health,
        "closed": closed,
        "refused": refused,
    }


def main(model: str, port: str, folder: str, notes: str, threads: str, queue: str) -> None:
    class Noting(ray_serve.Detr):
        """Appends the size of each run to a file."""

        def run(self, jobs: list[Any]) -> Any:
            with Path(notes).open("a") as file:
                file.write(f"{len(jobs)}\n")
            return super().run(jobs)

    ray_serve.Detr = Noting
    # With fewer CPUs than a replica and Ray's own actors want, it would wait for ever; none of them is reserved for real.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000, _temp_dir=folder)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port), "request_timeout_s": 60})
    serve.run(ray_serve.build(ray_serve.Arguments(model=model, threads=int(threads), queue=int(queue))))
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        print(json.dumps(asyncio.run(record())))
