"""The process that a `TimedSession` starts: it opens one file, runs it when it is told to, and ends with its parent."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.orphans import end_with
from detr_export.runtimes.timed_frames import receive, send


def main(parent: int) -> None:
    """Serves one session until the parent ends or closes its pipe.

    Args:
        parent: its process id.
    """
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    # Results go to what was stdout; what a library prints there must not be among them.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    try:
        document, _ = requests.get()
        with open_session(**document) as session:
            described = {
                name: [[spec.name, spec.dtype, list(spec.shape)] for spec in getattr(session, name)]
                for name in ("inputs", "outputs")
            }
            metadata = None if session.metadata is None else session.metadata.to_json()
            send(results, {**described, "metadata": metadata}, {})

            def choose(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
                send(results, {"choose": True}, outputs)
                _, arrays = requests.get()
                chosen: np.ndarray = arrays["chosen"]
                return chosen

            while True:
                document, inputs = requests.get()
                try:
                    outputs = session.run_chosen(inputs, choose) if document["choose"] else session.run(inputs)
                except DetrError as error:
                    send(results, _described(error), {})
                else:
                    send(results, {}, outputs)
    except DetrError as error:
        send(results, _described(error), {})


def _described(error: DetrError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error)}


def _read_requests(stream: IO[bytes], requests: queue.Queue[Any]) -> None:
    """Ends the process when the parent has: the model may be running, and would not look."""
    while (request := receive(stream)) is not None:
        requests.put(request)
    os._exit(0)
