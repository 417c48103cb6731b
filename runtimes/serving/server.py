"""`Server`: a port, an application on it, and an orderly end."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Optional

import uvicorn
from PIL import Image

from detr_export.runtimes.errors import BackendError, InputError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.serving.app import make_app
from detr_export.runtimes.serving.identity import Identity
from detr_export.runtimes.serving.metrics import Metrics
from detr_export.runtimes.serving.options import ServerOptions
from detr_export.runtimes.serving.service import Service
from detr_export.runtimes.session import largest_batch

_BACKLOG = 512  # connections that the kernel holds until they are accepted
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REASONS = {
    errno.EADDRINUSE: "the port is in use; give another one with --port, or 0 for any that is free",
    errno.EACCES: "the port is for the administrator; give one from 1024 on with --port, or 0 for any that is free",
    errno.EADDRNOTAVAIL: "the address is not one of this machine; give another one with --host",
}


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[socket.socket]:
    """Takes a port for the length of the block, so that a port that cannot be had is known before the model is read.

    Args:
        host: an address of this machine, or its name; 0.0.0.0 or :: for all.
        port: 0 for any that is free.

    Yields:
        A bound socket that does not listen yet.

    Raises:
        InputError: the address cannot be had, and why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host is {host!r}, which is no address ({error}); expected one like 127.0.0.1") from error
    with socket.socket(family, kind, protocol) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port may still be warm from the server before
        try:
            taken.bind(address)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
            raise InputError(f"cannot serve on {host} port {port}: {reason}") from error
        yield taken


class Server:
    """Serves a model until it is told to stop. Inside of `with` it takes connections, and `run` answers them.

    Args:
        predictor: the model; the caller closes it.
        port: from `reserved_port`.
        options: limits and habits.
        identity: what clients may know about the model.
    """

    def __init__(self, predictor: Predictor, port: socket.socket, options: ServerOptions, identity: Identity) -> None:
        self._port = port
        self._identity = identity
        self._grace = options.grace
        self._service = Service(predictor, options, Metrics(), largest_batch(predictor.session, identity.device))
        config = uvicorn.Config(
            make_app(self._service, identity),
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",  # errors are told by the service, without tracebacks
            server_header=False,
            timeout_graceful_shutdown=_whole(options.grace),
        )
        self._uvicorn = _Uvicorn(config)
        self._stopped_by: Optional[int] = None
        self._stopped_at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def address(self) -> str:
        """Where clients find it: `http://127.0.0.1:8000`."""
        host, port = self._port.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the address and the model."""
        return {"address": self.address, **self._identity.to_dict()}

    def summary(self) -> str:
        """One line for people."""
        return f"{self.address}  {self._identity.model} on {self._identity.device}; Ctrl-C ends it"

    def __enter__(self) -> Server:
        # What a client does wrong is told to the client, not to the terminal.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        self._service.__enter__()
        self._previous = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        self._port.listen(_BACKLOG)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._service.close(0)

    def run(self) -> None:
        """Answers requests until SIGTERM or Ctrl-C, and then those that are in the server. A second Ctrl-C ends at once.

        Raises:
            BackendError: something was not answered within the grace.
            KeyboardInterrupt: it was Ctrl-C.
        """
        self._uvicorn.run(sockets=[self._port])
        left = max(0.0, self._stopped_at + self._grace - time.monotonic())
        finished = self._service.close(0 if self._uvicorn.force_exit else left)
        if self._stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        if not finished or self._service.cut_short:
            raise BackendError(
                f"not all requests were answered within {self._grace:g} seconds after the signal; --grace gives more time"
            )

    def _stop(self, number: int, frame: Optional[FrameType]) -> None:
        if self._stopped_by is None:
            self._stopped_by, self._stopped_at = number, time.monotonic()
        self._service.stopping = True
        self._uvicorn.handle_exit(number, frame)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signals: it would raise them again at the end, and SIGTERM would not end with exit code 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _whole(seconds: float) -> int:
    """Rounded up, which is what uvicorn takes."""
    return int(-(-seconds // 1))
