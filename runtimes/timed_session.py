"""A session in a process of its own, which is ended when a run takes too long.

An ONNX file can loop for centuries, and no runtime can be told to stop. So who runs the files of strangers runs them so.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from detr_export.runtimes import errors
from detr_export.runtimes.documents import Size, typed
from detr_export.runtimes.errors import BackendError, DetrError, ImageError, InputError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Choose, Session, TensorSpec
from detr_export.runtimes.timed_frames import receive, send

_OPENING = 60.0  # seconds that a file may take to open; optimising its graph can run parts of it
_MOST_SECONDS = 1e6
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from detr_export.runtimes.timed_worker import main; main(int(sys.argv[2]))"
)
_Spec = tuple[str, str, list[Union[Size, str]]]


@dataclass
class _Opened:
    inputs: list[_Spec]
    outputs: list[_Spec]
    metadata: Optional[str]


def require_timeout(seconds: float) -> None:
    """Refuses a time that is none. Raises InputError."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _MOST_SECONDS:
        raise InputError(f"timeout is {seconds!r:.40}; expected more than 0 and at most {_MOST_SECONDS:g} seconds")


class TimedSession(Session):
    """A session in a process of its own. Runs are one at a time; after one that took too long the next starts a new process.

    Arrays are copied to that process and back. It ends with this one, however that ends.

    Args:
        source: the file, for messages.
        arguments: of `open_session`, as JSON has them.
        timeout: seconds that a run may take for each image of its batch. Opening the file may take 60.

    Raises:
        InputError: `timeout` is out of range.
        DetrError: as `open_session`; and ArtifactError if the file does not open in time.
    """

    def __init__(self, source: str, arguments: Mapping[str, Any], timeout: float) -> None:
        require_timeout(timeout)
        self.source = source
        self._arguments = dict(arguments)
        self._timeout = timeout
        self._running = threading.Lock()
        self._closed = False
        self._process: Optional[subprocess.Popen[bytes]] = None
        # Linux ends a process with the thread that started it, so that thread lives as long as the session.
        self._starter = ThreadPoolExecutor(1, "starter")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._answer(inputs, None)

    def run_chosen(self, inputs: Mapping[str, np.ndarray], choose: Choose) -> dict[str, np.ndarray]:
        self.check(inputs)
        return self._answer(inputs, choose)

    def close(self) -> None:
        self._closed = True
        self._end()
        self._starter.shutdown(wait=False)

    def _answer(self, inputs: Mapping[str, np.ndarray], choose: Optional[Choose]) -> dict[str, np.ndarray]:
        with self._running:
            if self._closed:
                raise BackendError("the session is closed")
            if self._process is None or self._process.poll() is not None:
                self._start()
            images = max(1, next(iter(inputs.values())).shape[0])
            try:
                with self._limited(self._timeout * images) as expired:
                    found = self._exchange({"choose": choose is not None}, inputs)
                    while found is not None and "choose" in found[0] and choose is not None:
                        found = self._exchange({}, {"chosen": choose(found[1])})
            except BaseException:  # what the process answers next would be the answer to this run
                self._end()
                raise
            if found is None:
                seconds = f"{self._timeout:g} seconds"
                why = f"took longer than {seconds} for an image (--timeout)" if expired.is_set() else "ended its process"
                self._end()
                raise ImageError(f"the model {self.source} {why}, and was stopped")
            _raise_reported(found[0])
            missing = {spec.name for spec in self.outputs} - set(found[1])
            if missing:
                raise BackendError(f"the process of {self.source} did not give {', '.join(sorted(missing))}")
            return found[1]

    def _start(self) -> None:
        """Starts the process, which opens the file."""
        self._end()
        self._process = self._starter.submit(_started).result()
        with self._limited(_OPENING) as expired:
            found = self._exchange(self._arguments, {})
        if found is None:
            self._end()
            why = f"did not open within {_OPENING:g} seconds" if expired.is_set() else "ended the process that opened it"
            raise errors.ArtifactError(f"{self.source} {why}; expected a file that opens")
        _raise_reported(found[0])
        opened = typed(found[0], _Opened, self.source, BackendError)
        text = opened.metadata
        self.inputs, self.outputs = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in specs)
            for specs in (opened.inputs, opened.outputs)
        )
        self.metadata = None if text is None else Metadata.from_json(text)

    def _exchange(
        self, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Optional[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """The answer to a request; None if the process has ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, document, arrays)
            return receive(process.stdout)
        except (OSError, ValueError):  # the pipe is broken, or closed
            return None

    @contextlib.contextmanager
    def _limited(self, seconds: float) -> Iterator[threading.Event]:
        """Ends the process when the block takes longer. Yields whether it did."""
        process, expired = self._process, threading.Event()
        assert process is not None

        def end() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not written yet cannot be
                    if stream is not None:
                        stream.close()
            process.wait()


def _raise_reported(document: Mapping[str, Any]) -> None:
    """Raises what the process raised, if it did."""
    if "error" in document:
        kind = getattr(errors, str(document["error"]), None)
        known = isinstance(kind, type) and issubclass(kind, DetrError)
        raise (kind if kind is not None and known else BackendError)(str(document.get("message")))


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _START, json.dumps(sys.path), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process
    )
