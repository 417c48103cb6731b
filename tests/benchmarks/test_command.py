"""`detr-bench` as people type it, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from detr_export.benchmarks.command import spelled_out

START = "from detr_export.benchmarks.command import main; main()"
QUICK = ("--rounds", "3", "--runs", "1", "--threads", "1", "--callers", "1", "--size", "96x128")


def bench(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)], capture_output=True, text=True, cwd=folder, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}


def test_a_table_and_a_report(tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    done = bench(tiny_onnx, f"torch:{tiny_checkpoint}", *QUICK, "--batch", "1", "2", "-o", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ratio to ort:tiny.onnx" in done.stdout
    for word in ("session p50 ms", "images/s", "peak memory MB", "2 cores" if os.cpu_count() == 2 else "cores"):
        assert word in done.stdout
    assert "Traceback" not in done.stderr
    assert "The noise of the ratios was not measured: it takes at least 4 rounds." in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [item["batch"] for item in report["measurements"]] == [1, 1, 2, 2]
    assert report["command"][:2] == ["detr-bench", str(tiny_onnx)]
    # The same folder again is refused before anything is measured, until it is allowed.
    again = bench(tiny_onnx, *QUICK, "-o", "out", folder=tmp_path)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert bench(tiny_onnx, *QUICK, "-o", "out", "--overwrite", folder=tmp_path).returncode == 0


def test_json_writes_no_folder(tiny_onnx: Path, tmp_path: Path) -> None:
    done = bench("run", tiny_onnx, *QUICK, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measurements"][0]["correct"] is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [(), ("--no-noise",)])
def test_noise(option: tuple[str, ...], tiny_onnx: Path, tmp_path: Path) -> None:
    done = bench(tiny_onnx, *QUICK, "--rounds", "4", *option, "-o", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("ort:tiny.onnx (again)" in done.stdout) is not bool(option)
    assert ("The noise of the ratios was not measured: it was not asked for." in done.stdout) is bool(option)


def test_what_fails_is_one_line_each_and_the_rest_goes_on(tiny_onnx: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    targets = (tmp_path / "no.onnx", bad, "transformers:nowhere", "model.engine", "tiny:x", tiny_onnx)
    done = bench(*targets, *QUICK, "--json", folder=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 5
    for line, words in zip(
        sorted(errors),
        sorted(["no.onnx does not exist", "bad.onnx", "nowhere", "model.engine", "no backend 'tiny'"]),
        strict=True,
    ):
        assert "Traceback" not in line
        assert words
    text = "\n".join(errors)
    for words in (
        "no.onnx does not exist",
        "cannot be loaded by ONNX Runtime",
        "nowhere is not a folder",
        "no backend 'tiny'",
    ):
        assert words in text
    measured = json.loads(done.stdout)["measurements"]
    assert [item["variant"] for item in measured] == ["ort:tiny.onnx"]
    assert measured[0]["session_ms"]["p50"] > 0


@pytest.mark.parametrize("targets", [("no.onnx",), ("no.onnx", "nope:x")])
def test_nothing_to_measure_writes_nothing(targets: tuple[str, ...], tmp_path: Path) -> None:
    done = bench(*targets, *QUICK, "-o", "out", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: nothing was measured: ")
    assert "ort:no.onnx: no.onnx does not exist" in line
    assert ("no backend 'nope'" in line) is (len(targets) == 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--threads", "10000"), 1, "threads is 10000; expected 1 to"),
        (("--size", "big"), 1, "size is 'big'; expected HEIGHTxWIDTH"),
        (("--batch", "0"), 1, "batch is '0'"),
        (("--images", "empty"), 1, "empty"),
        (("--runs", "1", "--seconds", "1"), 1, "leave --runs or --seconds out"),
        (("--rounds", "many"), 2, "--rounds"),
        (("--nonsense",), 2, "nonsense"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], code: int, message: str, tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = bench(tiny_onnx, *arguments, folder=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_ctrl_c_keeps_what_was_measured(tiny_onnx: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + START]
    command += [str(tiny_onnx), "--rounds", "100000", "--runs", "1", "--threads", "1", "--size", "96x128", "-o", "out"]
    terminal, other_end = pty.openpty()  # the progress bar shows on terminals alone, and on none of width 0
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=other_end, text=True, cwd=tmp_path, env=environment())
    os.close(other_end)
    error = ""
    while not re.search(r"round ([4-9]|\d\d)", error):  # the bar skips some
        error += os.read(terminal, 4096).decode(errors="replace")  # OSError once the process has ended
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while more := os.read(terminal, 4096):
            error += more.decode(errors="replace")
    out, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted: this is what had been measured" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["method"]["interrupted"] is True
    assert report["measurements"][0]["rounds"] >= 2


def test_gpu_without_one(tmp_path: Path) -> None:
    done = bench("gpu", "--rounds", "1", folder=tmp_path)
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no GPU to measure: ")
    assert list(tmp_path.iterdir()) == []


def test_processors() -> None:
    done = bench("processors", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["step"] for row in rows} == {"preprocess", "detections", "instances", "panoptic"}


def test_help() -> None:
    done = bench("--help")
    assert done.returncode == 0
    assert "processors" in done.stdout
    run = bench("run", "--help")
    assert "--sweep" in run.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("detr-bench ", {"run", "gpu", "processors"}),
        ("detr-bench pro", {"processors"}),
        ("detr-bench --si", {"--size"}),  # of `run`, which needs not be named
        ("detr-bench --ver", {"--version"}),
        ("detr-bench --show", {"--show-completion"}),
        ("detr-bench run --ba", {"--batch", "--baseline"}),
        ("detr-bench model.onnx --size 8x9 10x11 --ca", {"--callers"}),
        ("detr-bench processors --", {"--images", "--rounds", "--threads", "--json", "--help"}),
    ],
)
def test_the_shell_completes(typed: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_DETR_BENCH_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, env={**environment(), **words}, check=False
    )
    assert set(done.stdout.split()) == offered, done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_for_a_shell_names_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True,
        text=True,
        env={**environment(), "_DETR_BENCH_COMPLETE": "source_bash"},
        check=True,
    )
    assert "_DETR_BENCH_COMPLETE=complete_bash" in done.stdout
    assert "detr-bench" in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("", "run"),
        ("a.onnx", "run a.onnx"),
        ("run a.onnx", "run a.onnx"),
        ("processors", "processors"),
        ("gpu", "gpu"),
        ("--help", "--help"),
        ("--show-completion", "--show-completion"),
        ("--install-completion", "--install-completion"),
        ("--json", "run --json"),
        ("--size 8x9 10x11 a.onnx", "run --size 8x9 --size 10x11 a.onnx"),
        ("a.onnx --batch 1 4 --size 8x9", "run a.onnx --batch 1 --batch 4 --size 8x9"),
        ("--batch 1 a.onnx 4", "run --batch 1 a.onnx 4"),
    ],
)
def test_lists_of_values(typed: str, meant: str) -> None:
    assert spelled_out(typed.split()) == meant.split()
