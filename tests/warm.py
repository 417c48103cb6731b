"""Runs many commands in processes of their own without importing PyTorch in each: they are forked off one that has it.

Most of the seconds of a command that fails early are imports. What a command itself imports is tested elsewhere, in fresh
processes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PRELOADED = (
    "torch",
    "onnx",
    "onnxruntime",
    "detr_export.graphs.export",
    "detr_export.training.trainer",
    "detr_export.benchmarks.accuracy.evaluation",
    "detr_export.runtimes.backends.torch_session",
)


class WarmCommands:
    """Starts the process that commands are forked off; `run` is like `subprocess.run` of a Python program.

    Args:
        program: a module with a function `main`, such as `detr_export.cli`.
        environment: of the process, and of all commands.
    """

    def __init__(self, program: str, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", f"from tests.warm import serve; serve({program!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, arguments: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command in a folder, this process's own when None."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as name:
            outputs = [str(Path(name) / "stdout"), str(Path(name) / "stderr")]
            request = {"arguments": arguments, "folder": str(folder or Path.cwd()), "outputs": outputs}
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            printed = [Path(output).read_text(encoding="utf-8") for output in outputs]
        return subprocess.CompletedProcess(arguments, code, *printed)

    def close(self) -> None:
        """Ends the process."""
        self._server.communicate()  # closes its input, at which it ends


def serve(program: str) -> None:
    """Reads requests, one in a line, and answers each with the exit code of its command."""
    for name in _PRELOADED:
        importlib.import_module(name)
    main = importlib.import_module(program).main
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_command(main, json.loads(line)))
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _command(main: Callable[[], None], request: dict[str, Any]) -> int:
    """What a fresh interpreter would do with `main()`; returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    for number, path in enumerate(request["outputs"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["-c", *request["arguments"]]
    try:
        main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
