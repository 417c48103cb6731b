"""The real compiler for tests, behind a process that serves a whole test session."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar
from detr_export.runtimes.errors import BackendError

ROOT = Path(__file__).parent.parent.parent
SMALL = ("1x64x64:1x96x128:2x160x160",)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a graph."""

    sidecar: EngineSidecar
    report: dict[str, Any]  # of `KernelReport`, for the first profile
    attestation: dict[str, Any]  # of `Attestation`, for all profiles
    mask_head: EngineSidecar | None = None  # of the engine that draws the masks, if that is another one


class Compiler:
    """TensorRT-RTX in a process of its own. It takes about two seconds a small model."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def compile_form(self, onnx_file: Path, profiles: Sequence[str] = SMALL, targets: Sequence[str] = ("8.9",)) -> Compiled:
        """Compiles a file of detr-export's.

        Args:
            onnx_file: any form of it.
            profiles: as in `detr-export trt --profile`.
            targets: compute capabilities; none for all from Ampere on.

        Raises:
            BackendError: the compiler or the gate refused it; with the message of the command.
        """
        answer = self._ask({"file": str(onnx_file), "profiles": list(profiles), "targets": list(targets)})
        if "error" in answer:
            raise BackendError(answer["error"])
        sidecar = EngineSidecar.from_json(json.dumps(answer["sidecar"]))
        assert sidecar.kernels is not None
        assert sidecar.attestation is not None
        beside = answer.get("mask_head")
        mask_head = None if beside is None else EngineSidecar.from_json(json.dumps(beside["sidecar"]))
        return Compiled(sidecar, dict(sidecar.kernels), dict(sidecar.attestation), mask_head)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-m", "tests.rtx.worker"]
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the compiler died with {self._process.wait()} on {request}"
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # the end of its input ends it
            self._process = None


@pytest.fixture(scope="session")
def rtx_compiler() -> Iterator[Compiler]:
    """The compiler. Where it is not installed the test is skipped, but never in CI."""
    require_installed()
    compiler = Compiler()
    atexit.register(compiler.close)
    yield compiler
    compiler.close()


def require_installed() -> None:
    """Skips a test where TensorRT-RTX is not installed, but never in CI."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        reason = "TensorRT-RTX is not installed; run: pip install 'detr-export[rtx]'"
        if os.environ.get("CI"):
            raise AssertionError(reason)
        pytest.skip(reason)
