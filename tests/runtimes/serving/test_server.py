"""`detr-export serve` as its clients meet it: a process of its own, over the loopback network."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from detr_export import cli
from detr_export.runtimes import Predictor, load_image
from detr_export.runtimes.serving.batching import Batcher
from detr_export.runtimes.serving.metrics import Metrics

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
SECONDS = 60
SCORE_ATOL = 1e-4  # between a picture alone and in a batch of its size, as in tests/runtimes/test_predictor.py
BOX_ATOL = 1e-4  # times the longer side
MAX_BYTES, MAX_PIXELS = 200_000, 100_000  # of the server `strict`


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def document(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.body))


@dataclass(frozen=True)
class Running:
    """A server."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]  # the line that it printed

    def connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.ready["address"])
        assert address.hostname is not None
        return http.client.HTTPConnection(address.hostname, address.port, timeout=SECONDS)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """A request on a connection of its own; without a length, the body of an iterator is sent in chunks."""
        connection = self.connect()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked=not isinstance(body, (bytes, type(None))))
        answer = read(connection)
        connection.close()
        return answer

    def predict(self, body: Any, query: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/predict?{query}", body, **{"content_type": "image/png", **headers})

    def counts(self) -> dict[tuple[str, str], float]:
        """All samples, by name and status (or bucket)."""
        text = self.ask("GET", "/metrics").body.decode()
        return {
            (sample.name, "".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def read(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@contextmanager
def started(*arguments: str | Path) -> Iterator[Running]:
    command = [sys.executable, "-m", "detr_export", "serve", *map(str, arguments), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield Running(process, json.loads(line))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(small_onnx: Path) -> Iterator[Running]:
    """A server with a place for everybody."""
    with started(small_onnx, "--queue", "128", "--threshold", "0") as running:
        yield running


@pytest.fixture(scope="module")
def strict(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with tight limits and a front page of ours."""
    front = tmp_path_factory.mktemp("front")
    (front / "index.html").write_text("<title>ours</title>")
    (front / "style.css").write_text("body {}")
    limits = ("--queue", "3", "--max-bytes", str(MAX_BYTES), "--max-pixels", str(MAX_PIXELS), "--front", front)
    with started(small_onnx, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def predictor(small_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(small_onnx) as opened:
        yield opened


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def form(name: str, data: bytes, file: bool = True) -> bytes:
    disposition = f'form-data; name="{name}"' + ('; filename="a.png"' if file else "")
    return f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n--b--\r\n"


FORM = {"content_type": "multipart/form-data; boundary=b"}
SMALL = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)))


# ---- answers ------------------------------------------------------------------------------------------------------------


def test_the_same_as_the_predictor(server: Running, predictor: Predictor, photo: Path) -> None:
    """To the bit, for each way to send a picture."""
    data = photo.read_bytes()
    for threshold in (0.0, 0.3):
        expected = predictor.detect(data, threshold).to_dict()
        for body, headers in (
            (data, {"content_type": "image/jpeg"}),
            (data, {"content_type": "application/octet-stream"}),
            (form("image", data), FORM),
            (iter([data[:1000], data[1000:]]), {"content_type": "image/jpeg"}),
        ):
            answer = server.predict(body, f"threshold={threshold}", **headers)
            assert answer.status == 200
            assert answer.document == expected
    assert server.predict(data).document == predictor.detect(data, 0.0).to_dict()  # the server's own threshold
    assert len(predictor.detect(data, 0.0)) > len(predictor.detect(data, 0.3)) > 0


@pytest.mark.parametrize("task", ["panoptic", "instances", "semantic"])
def test_tasks_with_masks(task: str, server: Running, predictor: Predictor) -> None:
    segment = getattr(predictor, f"segment_{task}")
    expected = segment(SMALL) if task == "semantic" else segment(SMALL, 0.1)
    assert len(expected)
    assert server.predict(SMALL, f"task={task}&threshold=0.1").document == expected.to_dict()
    drawn = server.predict(SMALL, f"task={task}&threshold=0.1&format=image")
    assert np.array_equal(np.asarray(drawn.picture), np.asarray(expected.draw(SMALL)))


def test_pictures(server: Running, predictor: Predictor) -> None:
    expected = np.asarray(predictor.detect(SMALL, 0.2).draw(SMALL))
    assert not np.array_equal(expected, np.asarray(load_image(SMALL)))
    for query, accept in (("threshold=0.2&format=image", "*/*"), ("threshold=0.2", "image/png")):
        answer = server.predict(SMALL, query, accept=accept)
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(answer.picture), expected)
    answer = server.predict(SMALL, "threshold=0.2", accept="image/jpeg")
    assert (answer.headers["content-type"], answer.picture.format, answer.picture.size) == ("image/jpeg", "JPEG", (96, 64))


def test_a_connection_serves_many_requests(server: Running) -> None:
    connection = server.connect()
    for status, body in ((200, SMALL), (400, b"no"), (200, SMALL)):
        connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
        assert read(connection).status == status
    connection.close()


def test_a_batch_gives_what_a_list_gives(predictor: Predictor, photo: Path) -> None:
    """To the bit, because it is the same call."""
    pictures = [load_image(photo).crop((x, 0, x + 200, 150)) for x in (0, 100, 200)]
    began, go = threading.Event(), threading.Event()

    def run(task: str, images: list[Image.Image], threshold: float) -> list[Any]:
        began.set()
        assert go.wait(SECONDS)
        found: list[Any] = predictor.predict([*images], task, threshold)
        return found

    with Batcher(run, 4, 60, False, Metrics()) as batcher:
        batcher.submit("detection", 0.0, pictures[0])
        assert began.wait(SECONDS)
        jobs = [batcher.submit("detection", 0.0, picture) for picture in pictures]
        go.set()
        found = [job.result.result(SECONDS) for job in jobs]
    for given, wanted in zip(found, predictor.detect(pictures, 0.0), strict=True):
        assert given.to_dict() == wanted.to_dict()


def test_a_hundred_clients_at_once(server: Running, predictor: Predictor, photo: Path) -> None:
    """Each gets the answer to its own picture, and the server does not grow."""
    whole = load_image(photo)
    pictures = [whole.crop((x, x, x + 240 + 20 * (x % 2), x + 200)) for x in range(100)]  # of two sizes
    bodies = [png(picture) for picture in pictures]
    expected = [predictor.detect(picture, 0.0) for picture in pictures]
    for number in range(2, 100):  # or the answers could be swapped unnoticed
        assert np.abs(expected[number].scores - expected[number - 2].scores).max() > 2 * SCORE_ATOL
    process = psutil.Process(server.process.pid)
    before, sizes = server.counts(), []
    with ThreadPoolExecutor(100) as clients:
        for _ in range(4):
            for answer, wanted in zip(clients.map(server.predict, bodies), expected, strict=True):
                assert answer.status == 200
                found = answer.document["detections"]
                assert [item["label"] for item in found] == wanted.labels.tolist()
                assert np.abs(np.array([item["score"] for item in found]) - wanted.scores).max() <= SCORE_ATOL
                assert np.abs(np.array([item["box"] for item in found]) - wanted.boxes).max() <= BOX_ATOL * 260
            sizes.append(process.memory_info().rss)
    after = server.counts()
    assert after["detr_pictures_total", ""] - before["detr_pictures_total", ""] == 400
    assert after["detr_batch_size_sum", ""] - before["detr_batch_size_sum", ""] == 400
    assert after["detr_batch_size_count", ""] - before["detr_batch_size_count", ""] < 400  # some shared a batch
    assert sizes[-1] - sizes[1] < 20e6  # the pictures of two rounds are 30 MB
    assert (after["detr_requests_in_progress", ""], after["detr_queue_length", ""]) == (0, 0)


# ---- refusals -----------------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, and holds nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ZEROS = bytes(MAX_BYTES + 1)
REFUSALS = {
    "empty": (b"", "", {}, 400, "the body is empty"),
    "not an image": (b"hello", "", {}, 400, "the 5 bytes are not an image; expected the bytes of a JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "", {}, 400, "are not an image"),
    "truncated": (SMALL[:-300], "", {}, 400, "is damaged or truncated"),
    "threshold too large": (SMALL, "threshold=1.5", {}, 400, "threshold is 1.5; expected a number from 0 to 1"),
    "threshold NaN": (SMALL, "threshold=nan", {}, 400, "threshold is nan; expected a number from 0 to 1"),
    "threshold text": (SMALL, "threshold=high", {}, 400, "threshold is 'high'"),
    "unknown task": (SMALL, "task=x", {}, 400, "task is 'x'; expected one of detection, panoptic, instances, semantic"),
    "task of others": (SMALL, "task=tables", {}, 400, "the model cannot do the task 'tables'"),
    "format": (SMALL, "format=gif", {}, 400, "format is 'gif'; expected one of json, image, png, jpeg"),
    "other field": (form("file", SMALL), "", FORM, 400, "the form has the field 'image' 0 times (its fields: 'file')"),
    "text field": (form("image", b"a.png", file=False), "", FORM, 400, "the field 'image' is text; expected a file"),
    "no form": (b"hello", "", FORM, 400, "the form cannot be read"),
    "no boundary": (b"hello", "", {"content_type": "multipart/form-data"}, 400, "the form cannot be read"),
    "type": (SMALL, "", {"content_type": "text/plain"}, 415, "the body is 'text/plain'; expected image/*"),
    "large": (ZEROS, "", {}, 413, f"the body is too large; expected at most {MAX_BYTES} bytes"),
    "large in a form": (form("image", ZEROS), "", FORM, 413, "the body is too large"),
    "pixels": (png(Image.new("RGB", (1000, 101))), "", {}, 413, "too large (1000x101 pixels); expected at most 100000"),
    "bomb": (bomb(12000, 12000), "", {}, 413, "the picture is too large (12000x12000 pixels)"),
    "huge bomb": (bomb(60000, 60000), "", {}, 413, "the picture is too large"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, strict: Running) -> None:
    body, query, headers, status, message = REFUSALS[name]
    answer = strict.predict(body, query, **headers)
    assert answer.status == status
    assert list(answer.document) == ["error"]
    assert message in answer.document["error"]


@pytest.mark.parametrize("headers", [{}, FORM])
def test_a_large_body_without_a_length(headers: dict[str, str], strict: Running) -> None:
    data = form("image", ZEROS) if headers else ZEROS
    answer = strict.predict((data[start : start + 8192] for start in range(0, len(data), 8192)), **headers)
    assert (answer.status, "content-length" in answer.headers) == (413, True)


def test_other_addresses(strict: Running, server: Running) -> None:
    missing = strict.ask("GET", "/nothing")
    assert (missing.status, list(missing.document)) == (404, ["error"])
    wrong = server.ask("GET", "/predict")
    assert (wrong.status, wrong.headers["allow"], list(wrong.document)) == (405, "POST", ["error"])


def test_a_full_server(strict: Running) -> None:
    """A request that is still being sent has its place."""
    slow = [strict.connect() for _ in range(3)]
    for connection in slow:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", str(len(SMALL)))
        connection.endheaders()
        connection.send(SMALL[:100])
    wait_for(lambda: strict.counts()["detr_requests_in_progress", ""] == 3)
    refused = strict.predict(SMALL)
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.document == {"error": "all 3 places of the server are taken; try again later"}
    slow.pop().close()  # a client that leaves frees its place
    wait_for(lambda: strict.counts()["detr_requests_in_progress", ""] == 2)
    assert strict.predict(SMALL).status == 200
    for connection in slow:
        connection.send(SMALL[100:])
        assert read(connection).status == 200
        connection.close()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- what it says about itself ------------------------------------------------------------------------------------------


def test_health(server: Running, predictor: Predictor) -> None:
    document = server.ask("GET", "/health").document
    assert document.pop("status") == "ok"
    assert document == {name: value for name, value in server.ready.items() if name != "address"}
    assert {name: document[name] for name in ("model", "task", "device")} == {
        "model": "small.onnx",
        "task": "segmentation",
        "device": "cpu",
    }
    assert document["tasks"] == ["detection", "panoptic", "instances", "semantic"]
    assert server.ready["address"].startswith("http://127.0.0.1:")


def test_metrics_count_right(strict: Running) -> None:
    before = strict.counts()
    for body in (SMALL, SMALL, b"no", ZEROS):
        strict.predict(body)
    strict.predict(SMALL, "threshold=high")
    after = strict.counts()
    grown = {key: value - before.get(key, 0) for key, value in after.items() if not key[0].endswith("_created")}
    assert grown["detr_requests_total", "200"] == 2
    assert grown["detr_requests_total", "400"] == 2
    assert grown["detr_requests_total", "413"] == 1
    assert grown["detr_pictures_total", ""] == 2
    assert grown["detr_pixels_total", ""] == 2 * 96 * 64
    for name in ("batch_size", "wait_seconds", "decode_seconds", "model_seconds", "request_seconds"):
        assert grown[f"detr_{name}_count", ""] == grown[f"detr_{name}_bucket", "+Inf"] == 2
    assert grown["detr_batch_size_bucket", "1.0"] == 2


def test_front_pages(server: Running, strict: Running) -> None:
    page = server.ask("GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:href|src)="([^":]+)"', page.body.decode())
    scripts = re.findall(r'^import .* from "\./([^"]+)"', server.ask("GET", "/page.js").body.decode(), re.M)
    assert {"style.css", "page.js"} <= set(linked)
    assert "server.js" in scripts
    for name in (*linked, *scripts):
        assert server.ask("GET", f"/{name}").status == 200
    schema = server.ask("GET", "/openapi.json").document
    assert set(schema["paths"]) == {"/predict", "/health", "/metrics"}
    assert strict.ask("GET", "/").body == b"<title>ours</title>"
    assert strict.ask("GET", "/style.css").headers["content-type"].startswith("text/css")
    assert strict.ask("GET", "/../pyproject.toml").status == 404
    assert strict.ask("GET", "/health").status == 200


# ---- its end ------------------------------------------------------------------------------------------------------------


def test_sigterm_in_the_middle_of_twenty_requests(small_onnx: Path) -> None:
    with started(small_onnx) as running:
        half = len(SMALL) // 2
        connections = [running.connect() for _ in range(20)]
        for connection in connections:
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Type", "image/png")
            connection.putheader("Content-Length", str(len(SMALL)))
            connection.endheaders()
            connection.send(SMALL[:half])
        wait_for(lambda: running.counts()["detr_requests_in_progress", ""] == 20)
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(running))
        for connection in connections:
            connection.send(SMALL[half:])
        assert [read(connection).status for connection in connections] == [200] * 20
        for connection in connections:
            connection.close()
        assert running.process.wait(SECONDS) == 0
        assert running.process.communicate() == ("", "")


def refuses(running: Running) -> bool:
    connection = running.connect()
    try:
        connection.connect()
    except ConnectionRefusedError:
        return True
    finally:
        connection.close()
    return False


def test_the_grace_has_an_end(small_onnx: Path) -> None:
    with started(small_onnx, "--grace", "0.2") as running:
        connection = running.connect()
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        wait_for(lambda: running.counts()["detr_requests_in_progress", ""] == 1)
        running.process.send_signal(signal.SIGTERM)
        answer = read(connection)
        connection.close()
        assert (answer.status, list(answer.document)) == (503, ["error"])
        assert running.process.wait(SECONDS) == 1
        assert "not all requests were answered within 0.2 seconds" in running.process.communicate()[1]


def test_ctrl_c_and_the_line_for_people(small_onnx: Path) -> None:
    command = [sys.executable, "-m", "detr_export", "serve", str(small_onnx), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+  small\.onnx on cpu; Ctrl-C ends it\n", line)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert process.communicate() == ("", "interrupted\n")


# ---- what cannot start --------------------------------------------------------------------------------------------------


def fails(*arguments: str | Path) -> str:
    """The one line on stderr."""
    done = CliRunner().invoke(cli.app, ["serve", *map(str, arguments)])
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_port_in_use(server: Running) -> None:
    port = str(urlsplit(server.ready["address"]).port)
    assert f"cannot serve on 127.0.0.1 port {port}: the port is in use" in fails("nothing.onnx", "--port", port)


def test_a_port_for_the_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    assert "port 80: the port is for the administrator" in fails("nothing.onnx", "--port", "80")


def test_other_commands_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing.onnx does not exist" in fails("nothing.onnx", "--port", "0")
    assert "the address is not one of this machine" in fails("nothing.onnx", "--host", "192.0.2.1")
    assert "is no address" in fails("nothing.onnx", "--host", "no such host")
    assert "has no index.html" in fails("nothing.onnx", "--front", tmp_path)
    assert "timeout is 0.0; expected more than 0 seconds" in fails("nothing.onnx", "--timeout", "0")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "fastapi is not installed; run: pip install 'detr-export[serve]'" in fails("nothing.onnx")
