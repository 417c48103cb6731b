"""Commands that are killed at random moments: nothing lives on, what was complete is whole, and the next run succeeds.

This is the short form of `python -m tests.hostile.killing`, which `make kill` runs: few kills, by fixed seeds.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

from tests.hostile import killing
from tests.hostile.killing import COMMANDS, Command, Outcome, killed, prepare, processes_of, temporary_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
BY_NAME = {command.name: command for command in COMMANDS}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_onnx: Path) -> Path:
    folder = tmp_path_factory.mktemp("killing")
    prepare(folder, tiny_checkpoint, tiny_onnx)
    return folder


@pytest.mark.parametrize(
    ("name", "longest", "seed", "number"),
    [
        ("predict", 1.0, 0, signal.SIGKILL),
        ("predict", 1.0, 1, signal.SIGTERM),
        ("demo-data", 0.7, 2, signal.SIGKILL),
        ("demo-data", 0.7, 3, signal.SIGHUP),
        ("detr-bench", 4.0, 4, signal.SIGKILL),
        ("detr-bench", 4.0, 5, signal.SIGTERM),
        ("train", 5.0, 6, signal.SIGKILL),
    ],
)
def test_a_killed_command(name: str, longest: float, seed: int, number: int, inputs: Path, tmp_path: Path) -> None:
    outcome = Outcome()
    after = random.Random(seed).uniform(0.1, longest)
    killed(BY_NAME[name], inputs, tmp_path, after, number, outcome, again=name != "detr-bench")  # which takes long
    assert outcome.kills + outcome.finished_before == 1


# ---- the search itself can find something -------------------------------------------------------------------------------


def command(tmp_path: Path, program: str, check: str = "") -> Command:
    """A command that is a program of its own."""
    (tmp_path / "hostile_program.py").write_text(program)

    def checked(own: Path) -> None:
        assert not check or not (own / check).exists(), "not whole"

    return Command("bad", "hostile_program", lambda inputs, own: [str(own)], checked)


@pytest.mark.parametrize(
    ("program", "check", "message"),
    [
        ("import subprocess, time; subprocess.Popen(['sleep', '30']); time.sleep(30)", "", "1 processes live on"),
        ("import pathlib, sys, time; pathlib.Path(sys.argv[1], 'half').touch(); time.sleep(30)", "half", "not whole"),
        ("import pathlib, sys; pathlib.Path(sys.argv[1], '.half').touch()", "", "left after the next run"),
        ("import sys; sys.exit(3)", "", "exit code 3, expected 0"),
    ],
)
def test_what_is_wrong_is_found(
    program: str, check: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "_PATIENCE", 0.2)
    monkeypatch.setattr(killing, "ROOT", tmp_path)
    bad = command(tmp_path, program, check)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(AssertionError, match=message):
        killed(bad, tmp_path, folder, 1.0, signal.SIGKILL, Outcome())


def test_temporary_names_are_seen(tmp_path: Path) -> None:
    for name in (".a", "detr-export-0123456789abcdef", "tmpabc", "a.png", ".ses", "detr-export-locks-me"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in temporary_in(tmp_path)) == [".a", "detr-export-0123456789abcdef", "tmpabc"]
    assert processes_of("nobody") == []
