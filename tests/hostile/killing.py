"""Ends commands at random moments, by `kill -9` or in order, and looks at what they leave.

    python -m tests.hostile.killing KILLS [SEED] > kills.json

After each end no process of the command may live. What its folder holds is whole: what was there before, or what the
command makes. The same command then runs again, in the same folder, to its end: it must succeed, nothing temporary may be
left, and a training run must end in the weights of one that was never killed. The summary is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from PIL import Image

from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.runtimes.processing.image_processor import CONFIG_NAME
from detr_export.seeding import seed_weights
from tests import models

ROOT = Path(__file__).parent.parent.parent
_MARK = "DETR_EXPORT_KILLING"  # an environment variable that all processes of a command have
_PATIENCE = 5.0  # seconds in which what a killed process started must be gone
_OLD = 60.0  # seconds: what is younger may be in use, and the next run leaves it


@dataclass(frozen=True)
class Command:
    """A command, and what it makes."""

    name: str
    module: str
    arguments: Callable[[Path, Path], list[str]]  # of the folder with the inputs, and of the command's own
    check: Callable[[Path], None]  # raises where something in the command's own folder is not whole
    again: Callable[[Path], tuple[str, ...]] = lambda own: ()  # what is added when it runs again
    digest: Callable[[Path], str] | None = None  # of what must be the same, killed or not


@dataclass
class Outcome:
    """What came of many kills of one command."""

    kills: int = 0
    finished_before: int = 0  # the command was done when the signal was due
    left_over: int = 0  # temporary files and folders after a kill
    failures: list[str] = field(default_factory=list)


def prepare(folder: Path, checkpoint: Path | None = None, exported: Path | None = None) -> None:
    """Makes the inputs: a tiny checkpoint and its file, unless there are such, and a drawn data set."""
    if checkpoint is None:
        model = DetrForObjectDetection(models.config())
        seed_weights(model, 0)
        model.save_pretrained(folder / "checkpoint")
        settings = folder / "checkpoint" / CONFIG_NAME
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "size": models.SIZE}))
    else:
        (folder / "checkpoint").symlink_to(checkpoint)
    for split, images in (("train", 6), ("val", 2)):
        finish(start("detr_export", ["demo-data", str(folder / "data"), "--split", split, "--images", str(images)], folder))
    if exported is None:
        export = ["onnx", str(folder / "checkpoint"), "-o", str(folder / "tiny.onnx"), "--no-verify", "--no-simplify"]
        finish(start("detr_export", export, folder))
    else:
        (folder / "tiny.onnx").symlink_to(exported)


def start(module: str, arguments: list[str], scratch: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a command in a session of its own, so that no signal of it reaches the tests."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(scratch),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", _START.format(module=module), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        start_new_session=True,
    )


# A shell that starts tests in the background makes them deaf to Ctrl-C; the command is to hear it all the same.
_START = """
import runpy, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""


def finish(process: subprocess.Popen[str], expected: int = 0) -> tuple[str, str]:
    """Waits for the end of a command; AssertionError if it is another one than that expected."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
        process.communicate()
        raise
    assert process.returncode == expected, f"exit code {process.returncode}, expected {expected}: {err[-1000:]}"
    assert "Traceback" not in err, err
    return out, err


def processes_of(mark: str) -> list[int]:
    """The processes with a mark in their environment, zombies left out."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (place / "environ").read_bytes():
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(place.name)] if state != "Z" else []
        except OSError:  # noqa: PERF203  # it is gone, or another user's
            continue
    return found


def wait_until_gone(mark: str) -> list[int]:
    """The processes with a mark that do not go away."""
    deadline = time.monotonic() + _PATIENCE
    while (alive := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def temporary_in(folder: Path) -> list[Path]:
    """What is hidden, or has a name for temporary files. Locks stay; `.ses` is of ONNX Runtime's telemetry."""
    found = [path for path in folder.rglob("*") if path.name.startswith((".", "detr-export-", "tmp"))]
    return [path for path in found if path.name != ".ses" and not path.name.startswith("detr-export-locks-")]


def wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    """Waits until a command handles signals: it does not while Python itself starts."""
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) & bit:
                return
        time.sleep(0.001)


def killed(
    command: Command, inputs: Path, folder: Path, after: float, number: int, outcome: Outcome, again: bool = True
) -> None:
    """Runs a command, ends it after some seconds, looks at what is left, and runs it to its end.

    Args:
        inputs: from `prepare`.
        folder: an empty one.
        after: seconds; it may have finished before.
        number: of the signal.
        outcome: what is found goes there.
        again: whether it runs to its end after that.
    """
    own = folder / "own"
    own.mkdir()
    # The path is short: processes that prepare batches have sockets there.
    with tempfile.TemporaryDirectory(prefix="k-", dir="/tmp") as name:
        _killed(command, inputs, own, Path(name), after, number, outcome, again)


def _killed(
    command: Command,
    inputs: Path,
    own: Path,
    scratch: Path,
    after: float,
    number: int,
    outcome: Outcome,
    again: bool,
) -> None:
    mark = secrets.token_hex(8)
    arguments = command.arguments(inputs, own)
    process = start(command.module, arguments, scratch, **{_MARK: mark})
    if number != signal.SIGKILL:
        wait_until_it_listens(process)
    try:
        process.communicate(timeout=after)
        outcome.finished_before += 1
    except subprocess.TimeoutExpired:
        outcome.kills += 1
        process.send_signal(number)
        process.wait(timeout=120)
        alive = wait_until_gone(mark)  # what lives on holds the streams open
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert not alive, f"{len(alive)} processes live on"
        if number != signal.SIGKILL:
            expected = (128 + number, 0)  # 0: it was just done
            assert process.returncode in expected, f"exit code {process.returncode}: {errors[-500:]}"
            assert "Traceback" not in errors, errors
            lines = [line for line in errors.splitlines() if not line.startswith(("  ", "note: "))]
            assert lines == (["interrupted"] if process.returncode else []), errors
    left = [*temporary_in(own), *temporary_in(scratch)]
    outcome.left_over += len(left)
    assert not left or number == signal.SIGKILL, f"left: {left}"
    command.check(own)
    if not again:
        return
    for path in left:  # time passes
        os.utime(path, (time.time() - _OLD,) * 2, follow_symlinks=False)
    finish(start(command.module, [*command.arguments(inputs, own), *command.again(own)], scratch, **{_MARK: mark}))
    command.check(own)
    left = [*temporary_in(own), *temporary_in(scratch)]
    assert not left, f"left after the next run: {left}"


# ---- the commands -------------------------------------------------------------------------------------------------------


def _pictures_are_whole(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        if not path.name.startswith("."):
            with Image.open(path) as picture:
                picture.load()
    _documents_are_whole(folder)


def _documents_are_whole(folder: Path) -> None:
    for path in folder.rglob("*.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            json.loads(path.read_text())


def _file_is_whole(folder: Path) -> None:
    for path in folder.glob("[!.]*.onnx"):
        onnx.checker.check_model(onnx.load(path))


def _engine_is_whole(folder: Path) -> None:
    for path in folder.glob("[!.]*.engine"):
        sidecar = json.loads(path.with_name(path.name + ".json").read_text())
        assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def _weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "run" / "model.safetensors").read_bytes()).hexdigest()


def _training(inputs: Path, own: Path) -> list[str]:
    recipe = ["--epochs", "2", "--workers", "1", "--scale", "0.1", "0.1"]
    return ["train", "--data", str(inputs / "data"), "-o", str(own / "run"), "--from", str(inputs / "checkpoint"), *recipe]


def _going_on(own: Path) -> tuple[str, ...]:
    if (own / "run" / "recipe.json").exists():  # it was finished
        return ("--overwrite",)
    return ("--resume",) if (own / "run" / "training_state.pt").exists() else ()


COMMANDS = (
    Command(
        "predict",
        "detr_export",
        lambda inputs, own: [
            "predict",
            str(inputs / "tiny.onnx"),
            str(inputs / "data" / "train"),
            "-o",
            str(own / "out"),
            "--overwrite",
        ],
        _pictures_are_whole,
    ),
    Command(
        "demo-data",
        "detr_export",
        lambda inputs, own: ["demo-data", str(own / "data"), "--images", "6"],
        _documents_are_whole,
        # A split that is complete is refused.
        lambda own: ("--split", "val") if (own / "data" / "annotations" / "instances_train.json").exists() else (),
    ),
    Command(
        "onnx",
        "detr_export",
        lambda inputs, own: [
            "onnx",
            str(inputs / "checkpoint"),
            "-o",
            str(own / "a.onnx"),
            "--overwrite",
            "--no-verify",
            "--no-simplify",
        ],
        _file_is_whole,
    ),
    Command(
        "train",
        "detr_export",
        _training,
        _documents_are_whole,
        _going_on,
        _weights_of,
    ),
    Command(
        "detr-bench",
        "detr_export.benchmarks.command",
        lambda inputs, own: [
            str(inputs / "tiny.onnx"),
            "-o",
            str(own / "out"),
            "--overwrite",
            *("--size", "96x128", "--rounds", "2", "--runs", "1", "--callers", "0", "--threads", "1"),
        ],
        _pictures_are_whole,
    ),
    Command(
        "trt --rtx",
        "detr_export",
        lambda inputs, own: [
            "trt",
            str(inputs / "tiny.onnx"),
            "-o",
            str(own / "a.engine"),
            "--rtx",
            "--overwrite",
            *("--compute-capability", "8.6"),
        ],
        _engine_is_whole,
    ),
)


def campaign(kills: int, seed: int, names: tuple[str, ...] = (), number: int = signal.SIGKILL) -> Iterator[dict[str, Any]]:
    """Ends each command so many times, and yields a summary of each."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="killing-") as name:
        inputs = Path(name)
        prepare(inputs)
        for command in COMMANDS:
            if names and command.name not in names:
                continue
            outcome, begin = Outcome(), time.monotonic()
            folder = inputs / "whole"
            folder.mkdir()
            finish(start(command.module, command.arguments(inputs, folder), inputs))
            whole = time.monotonic() - begin
            expected = None if command.digest is None else command.digest(folder)
            _empty(folder)
            for _ in range(kills):
                folder = Path(tempfile.mkdtemp(prefix="kill-", dir=inputs))
                after = draw.uniform(0, whole)
                try:
                    killed(command, inputs, folder, after, number, outcome)
                    if expected is not None and command.digest is not None:
                        assert command.digest(folder / "own") == expected, "other weights"
                except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                    outcome.failures.append(f"after {after:.3f} s: {error}")
                _empty(folder)
            yield {"command": command.name, "seconds": round(whole, 2), **vars(outcome)}


def _empty(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def main() -> None:
    """Prints the summary; exit code 1 when something failed."""
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    number = signal.Signals[sys.argv[3]] if len(sys.argv) > 3 else signal.SIGKILL
    found = []
    for summary in campaign(kills, seed, tuple(sys.argv[4:]), number):
        print(json.dumps(summary), file=sys.stderr, flush=True)
        found.append(summary)
    print(json.dumps({"signal": signal.Signals(number).name, "seed": seed, "commands": found}, indent=2))
    sys.exit(any(item["failures"] for item in found))


if __name__ == "__main__":
    main()
