"""Results on a full disk, and on a pipe whose reader has left: an exit code, at most one line, and no traceback."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from detr_export import entry, terminal
from detr_export.runtimes.errors import InputError
from tests.hostile.commands import run

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
FULL = "error: No space left on device"
PRINTING = [
    ("detr-export", "--help"),
    ("detr-export", "--version"),
    ("detr-export", "onnx", "--help"),
    ("detr-export", "train", "--help"),
    ("detr-export", "doctor"),
    ("detr-export", "doctor", "--json"),
    ("detr-export", "inspect", "tiny.onnx"),
    ("detr-export", "inspect", "tiny.onnx", "--json"),
    ("detr-export", "predict", "tiny.onnx", "a.jpg"),
    ("detr-export", "predict", "tiny.onnx", "a.jpg", "--json"),
    ("detr-export", "demo-data", "drawn", "--images", "1"),
    ("detr-export", "demo-data", "drawn", "--images", "1", "--json"),
    ("detr-export", "verify", "tiny.onnx", "--against", "tiny.onnx", "--images", "a.jpg"),
    ("detr-bench", "--help"),
    ("detr-bench", "run", "--help"),
]


class _Stream(io.RawIOBase):
    """A stream that takes nothing."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.descriptor: int | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        self.descriptor = os.open(os.devnull, os.O_WRONLY)
        return self.descriptor

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        super().close()

    def write(self, data: object) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def inputs(tmp_path: Path, tiny_onnx: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of `PRINTING`, where the commands run."""
    (tmp_path / "tiny.onnx").symlink_to(tiny_onnx)
    (tmp_path / "a.jpg").symlink_to(photo)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stream(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(_Stream(number)), encoding="utf-8")


def discard(broken: io.TextIOWrapper) -> None:
    """Takes from a stream what it could not write, or it would complain when it goes."""
    broken.buffer.raw.write = len  # type: ignore[attr-defined]
    broken.close()


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_a_full_disk(
    command: tuple[str, ...], inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = stream(errno.ENOSPC)
    monkeypatch.setattr(sys, "stdout", broken)
    program, *arguments = command
    done = run(capsys, *arguments, program=program)
    discard(broken)
    assert (done.code, done.errors) == (1, [FULL])


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_a_reader_that_has_left(
    command: tuple[str, ...], inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = stream(errno.EPIPE)
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # put back what typer puts around it
    program, *arguments = command
    done = run(capsys, *arguments, program=program)
    discard(broken)
    assert (done.code, done.errors) == (1, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_an_error_that_cannot_be_told(
    number: int, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress and errors are for those who look; the work and its exit code do not depend on them."""
    for arguments, code in ((("inspect", "nope"), 1), (("demo-data", "drawn", "--images", "1"), 0)):
        broken = stream(number)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", broken)
            done = run(capsys, *arguments)
            discard(broken)
        assert done.code == code
    assert (inputs / "drawn" / "train").is_dir()


# ---- processes ----------------------------------------------------------------------------------------------------------


def shell(command: str) -> tuple[int, str]:
    """Exit code of the command in a shell, and what it printed on stderr; `$D` is detr-export."""
    script = f"set -o pipefail; D='{sys.executable} -m detr_export'; {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("$D --help >/dev/full", 1, f"{FULL}\n"),
        ("$D doctor --json >/dev/full", 1, f"{FULL}\n"),
        ("$D onnx --help | true", 1, ""),
        ("$D inspect nope --json >/dev/full", 1, "error: nope does not exist or is not a file\n"),
        ("$D inspect nope 2>/dev/full", 1, ""),
        ("$D inspect nope 2>&-", 1, ""),
        ("$D demo-data drawn --images 1 0<&- 1>&- 2>&-", 0, ""),
    ],
)
def test_real_streams(command: str, code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell(command) == (code, line)


def test_closed_streams_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the first file that a command writes would be its standard output."""
    opened: list[str] = []

    def fstat(number: int) -> None:
        if number == 1:
            raise OSError(errno.EBADF, "closed")

    with monkeypatch.context() as patch:
        patch.setattr(entry.os, "fstat", fstat)
        patch.setattr(entry.os, "open", lambda path, flags: opened.append(path))
        entry._open_standard_streams()
    assert opened == [os.devnull]


# ---- what libraries say -------------------------------------------------------------------------------------------------


def noted(act: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints on stderr whose libraries do something."""

    def app(prog_name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            act()

    monkeypatch.setattr(sys, "warnoptions", [])
    with pytest.raises(SystemExit):
        terminal.run_command_line(app, "detr-export")
    return capsys.readouterr().err


def _warn(text: str, times: int = 1, category: type[Warning] = UserWarning) -> Callable[[], None]:
    def act() -> None:
        for number in range(times):
            warnings.warn_explicit(text, category, "a.py", number + 1)

    return act


def _thread() -> None:
    import threading

    thread = threading.Thread(target=lambda: os.stat("/no file"))
    thread.start()
    thread.join()


def _log(name: str, level: int, text: str, own_handler: bool = False) -> Callable[[], None]:
    import logging

    def act() -> None:
        logger = logging.getLogger(name)
        handler = logging.StreamHandler()
        if own_handler:
            logger.addHandler(handler)
            logger.propagate = False
        try:
            logger.log(level, text)
        finally:
            logger.removeHandler(handler)
            logger.propagate = True

    return act


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (_warn("one\n  two"), "note: one two\n"),
        (_warn("often", 5), "note: often\n"),
        (_warn("x" * 400), f"note: {'x' * 297}...\n"),
        (_warn("old", category=FutureWarning), "note: old\n"),
        (_warn("odd", category=RuntimeWarning), "note: odd\n"),
        (_warn("The thing is deprecated", category=FutureWarning), ""),
        (_warn("'pin_memory' argument is set as true but no accelerator is found"), ""),
        (
            _thread,
            "note: a thread of a library ended: FileNotFoundError: [Errno 2] No such file or directory: '/no file'\n",
        ),
        (_log("library", 30, "careful", own_handler=True), "note: careful\n"),
        (_log("library", 40, "two\nlines", own_handler=True), "note: two lines\n"),
        (_log("library", 20, "chat", own_handler=True), ""),
        (_log("detr_export.serving", 40, "error: a request failed", own_handler=True), "error: a request failed\n"),
    ],
)
def test_what_libraries_say_is_a_note(
    act: Callable[[], None], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert noted(act, capsys, monkeypatch) == line


def test_who_asks_python_for_warnings_gets_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = warnings.showwarning
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with terminal._noting_libraries():
        assert warnings.showwarning is shown
    monkeypatch.setattr(sys, "warnoptions", [])
    with terminal._noting_libraries():
        assert warnings.showwarning is not shown
    assert warnings.showwarning is shown


def test_an_error_of_the_system_names_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_error(OSError(errno.ENOSPC, "No space left on device", "a\nb"))
    terminal.print_error(InputError("x\ny"))
    assert capsys.readouterr().err == f"{FULL}: a b\nerror: x y\n"
