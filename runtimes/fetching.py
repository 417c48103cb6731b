"""Fetches a picture from the web, with limits on its size and on the time.

Only https is trusted: over http anybody on the way can put another picture in. It is allowed from this machine itself, and
where the user says so. Content is never unpacked here, so a few bytes stay a few bytes.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Optional

from detr_export.runtimes.errors import DetrError, ImageError
from detr_export.runtimes.limits import current

TIMEOUT = 60.0  # seconds for the whole file
_SCHEMES = ("http://", "https://")
_CHUNK = 1 << 16
_KEPT = "%/:=&?~#+!$,;'@()*[]"  # characters that an address may have as they are


def is_address(text: str) -> bool:
    """Whether a text is an address on the web, and no path."""
    return text.lower().startswith(_SCHEMES)


def require_secure(address: str, what: str, remedy: str, kind: type[DetrError]) -> None:
    """Refuses an address that is neither https nor of this machine.

    Args:
        address: http:// or https://.
        what: what messages call it.
        remedy: what to do, for the message.
        kind: the error to raise.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        secure = parts.scheme == "https" or not parts.hostname or _is_loopback(parts.hostname)
    except ValueError as error:
        raise kind(f"cannot fetch {what}: {error}; check the address and the network") from error
    if not secure:
        raise kind(f"{what} is not https: others can change what comes on the way; {remedy}")


def fetch(address: str, max_bytes: Optional[int] = None, timeout: float = TIMEOUT, allow_http: bool = False) -> bytes:
    """The content of a file on the web, as it was sent. Redirections are followed, from https to https alone.

    Args:
        address: https://; http:// for a server on this machine.
        max_bytes: of the content; the limit `download_bytes` when None.
        timeout: for all of it, seconds.
        allow_http: whether http may be of any machine.

    Raises:
        ImageError: there is no such server or file, it is too large or too slow, or it would come over http.
    """
    if not allow_http:
        require_secure(address, address, "use https://, or add --allow-http if you trust the network", ImageError)
    most = current().download_bytes if max_bytes is None else max_bytes
    watch = _Watch(timeout)
    try:
        request = urllib.request.Request(urllib.parse.quote(address, safe=_KEPT), headers={"User-Agent": "detr-export"})
        with watch, _opener(watch, allow_http).open(request, timeout=timeout) as response:
            content = _content(response, address, most, watch)
        if watch.is_over():
            raise TimeoutError
        return content
    except urllib.error.HTTPError as error:
        error.close()
        said = " ".join(str(error.reason).split())
        raise ImageError(f"{address}: the server answered {error.code} {said:.200}; check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if watch.is_over() or isinstance(reason, TimeoutError) or "timed out" in str(reason):
            raise ImageError(
                f"{address} did not come within {timeout:g} seconds; try again, or download it first"
            ) from error
        text = " ".join(str(getattr(reason, "strerror", None) or reason).split()) or type(reason).__name__
        raise ImageError(f"cannot fetch {address}: {text:.200}; check the address and the network") from error


def _content(response: Any, address: str, most: int, watch: _Watch) -> bytes:
    told = response.headers.get("Content-Length")
    length = int(told) if told and told.isascii() and told.isdigit() and len(told) < 20 else None
    if length is not None and length > most:
        raise _too_large(address, most)
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > most:
            raise _too_large(address, most)
        if watch.is_over():
            raise TimeoutError
    if length is not None and len(content) < length and not watch.is_over():
        raise ImageError(f"{address} ended after {len(content)} of {length} bytes; try again")
    return bytes(content)


class _Watch:
    """Ends connections when the time is over, whatever they wait for: a server may send a byte now and then for ever."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        with self._lock:
            for held in self._sockets:
                held.close()
            self._sockets.clear()

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """`socket.create_connection`, watched."""
        made = socket.create_connection(*args, **kwargs)
        with self._lock:
            self._sockets.append(made.dup())  # TLS takes the socket itself over
        return made

    def _stop(self) -> None:
        with self._lock:
            for held in self._sockets:
                with contextlib.suppress(OSError):  # it has ended by itself
                    held.shutdown(socket.SHUT_RDWR)


class _Web(urllib.request.HTTPSHandler):
    """http, and https with the certificates that `ssl` checks by default. Its connections are watched."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_watched, http.client.HTTPConnection, self._watch), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_watched, http.client.HTTPSConnection, self._watch), req)

    http_request = urllib.request.HTTPSHandler.https_request


def _watched(kind: type[http.client.HTTPConnection], watch: _Watch, host: str, **options: Any) -> http.client.HTTPConnection:
    connection = kind(host, **options)
    connection._create_connection = watch.connect  # type: ignore[attr-defined]
    return connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Never leads from https to http."""

    def __init__(self, allow_http: bool) -> None:
        self._allow_http = allow_http

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> Optional[urllib.request.Request]:
        answer, target = args[0], str(args[-1])
        if not self._allow_http and target.lower().startswith("http:"):
            host = urllib.parse.urlsplit(target).hostname or ""
            if req.full_url.lower().startswith("https:") or not _is_loopback(host):
                answer.close()
                raise ImageError(
                    f"{req.full_url} leads to {target:.200}, which is not https; download it first, or add --allow-http if "
                    "you trust the network"
                )
        return super().redirect_request(req, *args)

    def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:  # the new address is none
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(watch: _Watch, allow_http: bool) -> urllib.request.OpenerDirector:
    """One that knows http and https alone. `build_opener` would also read local files and FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Web(watch),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(allow_http),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _too_large(address: str, max_bytes: int) -> ImageError:
    return ImageError(
        f"{address} is too large: expected at most {max_bytes / 2**20:g} MiB; download it and pass the file, or add "
        "--limit download_bytes=N"
    )
