"""Servers that lie, dribble, never end, or lead elsewhere."""

from __future__ import annotations

import contextlib
import gzip
import io
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from detr_export.checkpoints.hub import download
from detr_export.runtimes import limits
from detr_export.runtimes.errors import ArtifactError, CheckpointError, ImageError
from detr_export.runtimes.fetching import fetch, require_secure
from detr_export.runtimes.hub import onnx_file, sizes_on_hub
from detr_export.runtimes.sources import find_sources

BOMB = gzip.compress(bytes(50_000_000))


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(stream, "PNG")
    return stream.getvalue()


Answer = Callable[["Handler"], None]


def lines(*headers: tuple[str, str], status: int = 200, body: bytes = b"") -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def dribble(first: bytes) -> Answer:
    """Sends something, and then a byte now and then, for ever."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(first)
        for _ in range(200):
            handler.wfile.write(b"x")
            if handler.server.stopped.wait(0.02):  # type: ignore[attr-defined]
                return

    return answer


def raw(data: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(data)

    return answer


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(bytes(10_000))


ANSWERS: dict[str, Answer] = {
    "good": lines(("Content-Length", str(len(picture()))), body=picture()),
    "no-length": lines(body=picture()),
    "longer": lines(("Content-Length", "5000"), body=picture()),
    "huge-length": lines(("Content-Length", "999999999999"), body=b"a"),
    "10-to-5000": lines(("Content-Length", "9" * 5000), body=picture()),
    "no-number": lines(("Content-Length", "many"), body=picture()),
    "negative": lines(("Content-Length", "-5"), body=picture()),
    "bomb": lines(("Content-Encoding", "gzip"), ("Content-Length", str(len(BOMB))), body=BOMB),
    "chunked-bomb": lines(("Transfer-Encoding", "chunked"), body=b"FFFFFFFFFFFFFFFF\r\nabc"),
    "chunked-cut": lines(("Transfer-Encoding", "chunked"), body=b"5\r\nab"),
    "chunked-nonsense": lines(("Transfer-Encoding", "chunked"), body=b"hello\r\nab"),
    "endless": endless,
    "slow-headers": dribble(b"HTTP/1.0 200 OK\r\nX-A: "),
    "slow-status": dribble(b"HT"),
    "slow-body": dribble(b"HTTP/1.0 200 OK\r\n\r\n"),
    "many-headers": lines(*[(f"X-{n}", "a") for n in range(200)], body=picture()),
    "long-header": lines(("X-A", "a" * 100_000), body=picture()),
    "to-itself": lines(("Location", "/to-itself"), status=302),
    "to-other-http": lines(("Location", "http://192.0.2.1/a.png"), status=302),
    "to-name-http": lines(("Location", "HTTP://example.org/a.png"), status=301),
    "to-file": lines(("Location", "file:///etc/passwd"), status=302),
    "to-ftp": lines(("Location", "ftp://example.org/a.png"), status=302),
    "to-data": lines(("Location", "data:text/plain,hello"), status=302),
    "to-nothing": lines(status=302),
    "to-broken": lines(("Location", "http://[/"), status=302),
    "to-good": lines(("Location", "/good"), status=307),
    "error-page": lines(status=500, body=b"x" * 1000),
    "no-http": raw(b"hello\r\n\r\n"),
    "nothing": lambda handler: None,
}


class Handler(BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            ANSWERS[self.path[1:]](self)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.stopped = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.stopped.set()  # type: ignore[attr-defined]
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("path", ["good", "no-length", "10-to-5000", "no-number", "negative", "to-good"])
def test_a_picture_comes_whatever_its_headers_say(server: str, path: str) -> None:
    assert fetch(f"{server}/{path}") == picture()


BAD: list[tuple[str, str]] = [
    ("longer", r"/longer ended after \d+ of 5000 bytes; try again"),
    ("huge-length", "/huge-length is too large: expected at most 0.0953674 MiB.*--limit download_bytes=N"),
    ("endless", "/endless is too large: expected at most"),
    ("chunked-bomb", "/chunked-bomb"),
    ("chunked-cut", "cannot fetch .*/chunked-cut: IncompleteRead"),
    ("chunked-nonsense", "cannot fetch .*/chunked-nonsense"),
    ("slow-headers", "/slow-headers did not come within 0.3 seconds"),
    ("slow-status", "/slow-status did not come within 0.3 seconds"),
    ("slow-body", "/slow-body did not come within 0.3 seconds"),
    ("many-headers", "cannot fetch .*/many-headers: got more than 100 headers"),
    ("long-header", "cannot fetch .*/long-header: got more than 65536 bytes"),
    ("to-itself", "/to-itself: the server answered 302"),
    ("to-other-http", "/to-other-http leads to http://192.0.2.1/a.png, which is not https.*--allow-http"),
    ("to-name-http", "(?i)/to-name-http leads to http://example.org/a.png, which is not https"),
    ("to-file", "/to-file: the server answered 302"),
    ("to-ftp", "/to-ftp"),
    ("to-data", "/to-data: the server answered 302"),
    ("to-nothing", "/to-nothing: the server answered 302"),
    ("to-broken", "cannot fetch .*/to-broken"),
    ("error-page", "/error-page: the server answered 500"),
    ("no-http", "cannot fetch .*/no-http: hello"),
    ("nothing", "cannot fetch .*/nothing"),
]


@pytest.mark.parametrize(("path", "message"), BAD, ids=[path for path, _ in BAD])
def test_a_bad_answer_is_one_clear_error(server: str, path: str, message: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ImageError, match=message) as raised:
        fetch(f"{server}/{path}", max_bytes=100_000, timeout=0.3)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert time.monotonic() - begin < 20  # not for ever; the timeout itself is not measured
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_content_is_not_unpacked(server: str) -> None:
    assert fetch(f"{server}/bomb") == BOMB


def test_the_limit_is_that_of_the_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_current", limits.Limits(download_bytes=len(picture())))
    assert fetch(f"{server}/no-length") == picture()
    monkeypatch.setattr(limits, "_current", limits.Limits(download_bytes=len(picture()) - 1))
    for path in ("good", "no-length"):
        with pytest.raises(ImageError, match="is too large: expected at most"):
            fetch(f"{server}/{path}")


INSECURE = [
    "http://example.org/a.png",
    "http://192.168.1.5/a.png",
    "http://10.0.0.1:8080/",
    "HTTP://128.0.0.1/",
    "http://[2001:db8::1]/",
    "http://localhost.example.org/",
    "http://127.0.0.1.example.org/",
    "http://user@example.org/",
    "http://127.0.0.1@example.org/",
]
LOOPBACK = [
    "http://127.0.0.1/",
    "http://127.9.9.9:80/",
    "http://localhost/",
    "http://LOCALHOST:1/",
    "http://[::1]/",
    "https://example.org/",
]


@pytest.mark.parametrize("address", INSECURE)
def test_http_is_refused(address: str) -> None:
    with pytest.raises(ImageError, match=r"is not https: others can .*; use https://, or add --allow-http"):
        fetch(address)
    (source,) = find_sources([address]).pictures
    with pytest.raises(ImageError, match="is not https"):
        source.load()


@pytest.mark.parametrize("address", LOOPBACK)
def test_this_machine_is_trusted(address: str) -> None:
    require_secure(address, address, "", ImageError)


def test_http_can_be_allowed(server: str) -> None:
    (source,) = find_sources([f"{server}/good"], allow_http=True, allow_truncated=True).pictures
    assert (source.allow_http, source.allow_truncated) == (True, True)
    assert source.load()[0].size == (4, 3)
    with pytest.raises(ImageError, match=r"the server answered 302|did not come|cannot fetch"):
        fetch(f"{server}/to-itself", allow_http=True)


@pytest.mark.parametrize("endpoint", ["http://example.org", "http://192.0.2.7:8080"])
def test_the_hub_is_asked_over_https_alone(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_export.runtimes.hub import hub_errors

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(ArtifactError, match=r"the hub's address .* \(HF_ENDPOINT\) is not https.*begins with https://"):
        onnx_file("org/repo/model.onnx")
    with pytest.raises(CheckpointError, match="HF_ENDPOINT"), hub_errors("a/b", "config.json", None, CheckpointError):
        pass


# ---- the hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"config.json": 2**30}, "the size of config.json in someone/detr in bytes is 1073741824"),
        ({"preprocessor_config.json": 2**27}, "preprocessor_config.json in someone/detr in bytes is 134217728"),
        ({"model.safetensors": 2**40}, "model.safetensors in someone/detr in bytes is 1099511627776"),
        ({"pytorch_model.bin": 2**40}, "pytorch_model.bin in someone/detr in bytes"),
        ({"model.safetensors.index.json": 2**27}, "model.safetensors.index.json in someone/detr in bytes"),
        (
            {f"model-{part:05}.safetensors": 2**35 for part in range(3)},
            r"model-\*.safetensors in someone/detr in bytes is 103079215104; expected at most 68719476736",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_large_files_of_the_hub_are_not_fetched(
    sizes: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_export.checkpoints.hub.sizes_on_hub", lambda repository, revision: sizes)
    with pytest.raises(CheckpointError, match=message):
        download("someone/detr")


def test_a_large_onnx_file_of_the_hub_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_export.runtimes.hub.sizes_on_hub", lambda repository, revision: {"a.onnx": 2**40})
    with pytest.raises(ArtifactError, match=r"the size of a.onnx in someone/detr in bytes is .*--limit checkpoint_bytes=N"):
        onnx_file("someone/detr/a.onnx")


def test_sizes_are_what_the_hub_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    told = [SimpleNamespace(rfilename="a", size=3), SimpleNamespace(rfilename="b", size=None)]
    answer: Any = SimpleNamespace(siblings=told)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: answer)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert sizes_on_hub("someone/detr", None) == {}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert sizes_on_hub("someone/detr", None) == {"a": 3}
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: 1 / 0)
    assert sizes_on_hub("someone/detr", None) == {}
