"""examples/ray_serve.py, on a cluster of one machine.

All requests are one test: workers of pytest that share a file would start a cluster each.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from detr_export.runtimes import Predictor

ROOT = Path(__file__).parent.parent
THREADS, QUEUE = 2, 32
PLACES = 16  # of a replica in the example
SECONDS = 60
# Pictures that ran together differ by what float32 rounds; as in tests/runtimes/serving/test_server.py.
SCORE_ATOL, BOX_ATOL = 1e-4, 1e-4 * 96
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # or it would write a key into the home folder
}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """The server."""

    process: subprocess.Popen[str]
    port: int
    notes: Path  # the size of each run

    def ask(self, body: bytes, query: str = "threshold=0") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request("POST", f"/?{query}", body, {"Content-Type": "image/png"})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def others(self) -> list[psutil.Process]:
        """All processes of the cluster but the first."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def replica(self) -> psutil.Process:
        (found,) = [process for process in self.others() if "ServeReplica" in " ".join(process.cmdline())]
        return found


def driver(*arguments: object) -> list[str]:
    """The command that starts tests/ray_serve_driver.py."""
    return [sys.executable, "-m", "tests.ray_serve_driver", *map(str, arguments)]


@pytest.fixture
def server(tiny_onnx: Path, tmp_path: Path) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray makes sockets in it
    command = driver(tiny_onnx, port, folder, folder / "notes", THREADS, QUEUE)
    log = tmp_path / "log"
    try:
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=ENVIRONMENT
            ) as process,
        ):
            assert process.stdout is not None
            others: list[psutil.Process] = []
            try:
                assert process.stdout.readline() == "ready\n", log.read_text()
                running = Running(process, port, folder / "notes")
                yield running
                others += running.others()
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(SECONDS) == 0, log.read_text()
                assert not psutil.wait_procs(others, timeout=SECONDS)[1], "processes of the cluster are left"
            finally:
                if process.poll() is None:
                    others += psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for other in others:
                    with suppress(psutil.NoSuchProcess):
                        other.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx, threads=THREADS) as opened:
        yield opened


def picture(number: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    height, width = size[::-1]
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same objects, but for rounding. The order of equal scores may change with it."""

    def order(item: dict[str, Any]) -> tuple[Any, ...]:
        return item["label"], item["box"]

    assert len(found) == len(expected) > 0
    for one, other in zip(sorted(found, key=order), sorted(expected, key=order), strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=SCORE_ATOL)
        assert one["box"] == pytest.approx(other["box"], abs=BOX_ATOL)


# ---- over HTTP ----------------------------------------------------------------------------------------------------------


def test_requests(server: Running, predictor: Predictor, photo: Path) -> None:
    check_one_picture(server, predictor, photo)
    check_pictures_at_once(server, predictor)
    check_refusals(server)
    check_a_flood(server, predictor)


def check_one_picture(server: Running, predictor: Predictor, photo: Path) -> None:
    """To the bit: a client who is alone shares no batch."""
    data = photo.read_bytes()
    for threshold in (0.0, 0.6):
        answer = server.ask(data, f"threshold={threshold}")
        assert (answer.status, answer.document) == (200, predictor.detect(data, threshold).to_dict())
    assert server.ask(data, "").document == predictor.detect(data, 0.5).to_dict()
    assert len(predictor.detect(data, 0.0)) > len(predictor.detect(data, 0.6)) > 0


def check_pictures_at_once(server: Running, predictor: Predictor) -> None:
    images = [picture(number, size) for number in range(6) for size in ((96, 64), (64, 80))]
    with ThreadPoolExecutor(len(images)) as clients:
        answers = list(clients.map(lambda image: server.ask(png(image)), images))
    for image, answer in zip(images, answers, strict=True):
        assert answer.status == 200, answer.body
        assert_close(answer.document["detections"], predictor.detect(image, 0.0).to_dict()["detections"])


def check_refusals(server: Running) -> None:
    """With the statuses and texts of `detr-export serve`."""
    for body, query, status, message in (
        (b"no picture", "", 400, "not an image"),
        (b"", "", 400, "empty"),
        (b"", "threshold=much", 400, "threshold is 'much'; expected a number from 0 to 1"),
        (b"", "threshold=2", 400, "threshold is 2"),
        (bytes((20 << 20) + 1), "", 413, "too large"),
    ):
        answer = server.ask(body, query)
        assert answer.status == status
        assert message in answer.document["error"]


def check_a_flood(server: Running, predictor: Predictor) -> None:
    """While the replica stands still, its places and those of the queue fill up; all others are told to come again."""
    image = picture(0)
    many = 2 * (PLACES + QUEUE)
    replica = server.replica()
    with ThreadPoolExecutor(many) as clients:
        replica.suspend()
        try:
            asked = [clients.submit(server.ask, png(image)) for _ in range(many)]
            finished = as_completed(asked, timeout=SECONDS)
            early = [next(finished).result() for _ in range(10)]
        finally:
            replica.resume()
        answers = [future.result() for future in asked]
    assert {(answer.status, answer.headers["retry-after"]) for answer in early} == {(429, "1")}
    served = [answer for answer in answers if answer.status == 200]
    assert len(served) + sum(answer.status == 429 for answer in answers) == many
    assert served
    for answer in served:
        assert_close(answer.document["detections"], predictor.detect(image, 0.0).to_dict()["detections"])
    assert max(int(line) for line in server.notes.read_text().split()) > 1  # those that waited shared a run
    assert server.ask(png(image)).status == 200


# ---- inside of a replica ------------------------------------------------------------------------------------------------


def test_a_replica() -> None:
    """Pictures of one size and threshold run together, and no others; each gets its own result, or its own error."""
    done = subprocess.run(driver(), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["mixed"] == ["0.5", "0.5", "0.5", "0.25", "0.5"]
    assert record["mixed_runs"] == [[[8, 8], [8, 8]], [[16, 8], [16, 8]], [[8, 8]]]
    assert record["broken"] == ["0.5", "broken", "broken"]
    assert record["health"] == [True, False, True]  # before the broken ones, after them, and after a good one
    assert record["closed"]
    assert "thread\n" in record["refused"]  # `threads` is meant
