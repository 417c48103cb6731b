"""The process of a variant, seen from its parent: it is started, asked, waited for and ended here."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from typing import Any, Protocol

from detr_export.benchmarks.speed.worker import Failure, Memory
from detr_export.runtimes.errors import BackendError, missing_extra
from detr_export.runtimes.temporary import temporary_folder

try:
    import psutil
except ImportError as error:
    raise missing_extra("psutil", "bench") from error

# It ends with this process, from its first moment on.
_START = "from detr_export.runtimes.orphans import end_with; end_with({parent})\n"
_START += "from detr_export.benchmarks.speed.worker import main; main()"
_IDLE_POLL_S = 0.025  # more than the 10 ms in which Linux counts a process's time
_IDLE_LIMIT_S = 2.0
_GOODBYE_S = 2.0


class WorkerDiedError(BackendError):
    """The process of a variant ended before it answered."""


class Process(Protocol):
    """What `Runner` needs from the process of a variant."""

    memory: Memory | None

    def request(self, command: Any) -> Any:
        """Sends a command and waits for its answer; BackendError when it fails."""

    def wait_until_idle(self) -> None:
        """Returns when the process no longer computes."""

    def close(self) -> None:
        """Ends the process."""


class WorkerProcess:
    """A process that serves `detr_export.benchmarks.speed.worker`.

    Args:
        threads: how many, for the libraries that read this from the environment.
    """

    def __init__(self, threads: int) -> None:
        self.memory: Memory | None = None
        self._scratch = temporary_folder()
        self._errors = open(self._scratch.path / "stderr", "w+b")  # noqa: SIM115  # closed with the process
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONSAFEPATH": "1",  # a folder here that happens to be called torch must not be imported
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(self._scratch.path),  # empty, so that the first run includes the compilation
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(parent=os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal does not reach it, not even while it starts
        )
        self._usage = psutil.Process(self._process.pid)
        self._started: list[psutil.Process] = []  # compilers

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def request(self, command: Any) -> Any:
        """Sends a command and waits for its answer.

        Raises:
            WorkerDiedError: the process has ended; says how.
            BackendError: the command failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(command, self._process.stdin)
            self._process.stdin.flush()
            reply, self.memory = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise WorkerDiedError(self._how_it_ended()) from error
        if isinstance(reply, Failure):
            raise BackendError(reply.message)
        return reply

    def wait_until_idle(self) -> None:
        """Waits until the process has used no CPU time for a moment.

        Threads of ONNX Runtime and OpenMP keep a core busy for a while after a run: about 30 ms where this was measured.
        They would take that core from whatever runs next.
        """
        deadline = time.perf_counter() + _IDLE_LIMIT_S
        with contextlib.suppress(psutil.Error):
            used = _cpu_time_s(self._usage)
            while time.perf_counter() < deadline:
                time.sleep(_IDLE_POLL_S)
                before, used = used, _cpu_time_s(self._usage)
                if used == before:
                    return

    def close(self) -> None:
        """Asks the process to end, and kills it when it is still busy, with all that it started."""
        with contextlib.suppress(psutil.Error):
            self._started = self._usage.children(recursive=True) or self._started
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in self._started:  # psutil looks whether a number has become that of another process
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._errors.close()
        self._scratch.remove()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            return "its process no longer answers"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return how_a_process_ended(code, lines[-1] if lines else "")


def how_a_process_ended(code: int, last_line: str) -> str:
    """One line: the exit code, or the signal if that is negative, and what the process said last."""
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = "; was there enough memory?" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}" + (f": {last_line:.200}" if last_line else "")


def _cpu_time_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
