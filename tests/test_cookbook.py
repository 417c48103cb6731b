"""The commands of docs/cookbook.md, one after the other, on a few pictures and for one epoch."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.predictor import Predictor

PAGE = Path(__file__).parent.parent / "docs" / "cookbook.md"
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]
# What makes them quick. The scores of a model that has hardly been trained are those of chance.
SHORTER = {
    r"--images \d+": "--images 16",
    r"--epochs \d+": "--epochs 1",
    r"--accuracy coins": "--accuracy coins --max-ap-drop 1 --accuracy-images 4",
}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    for pattern, text in SHORTER.items():
        command = re.sub(pattern, text, command)
    program, *arguments = shlex.split(command)
    assert program == "detr-export"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "detr_export", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands were run."""
    folder = tmp_path_factory.mktemp("cookbook")
    for command in COMMANDS:
        done = run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    return folder


def metadata(file: Path) -> Metadata:
    with Predictor.load(file, spinning=False) as predictor:
        return predictor.metadata


def test_the_files_were_verified_and_know_what_they_are(folder: Path) -> None:
    half, eighth = metadata(folder / "coins-fp16.onnx"), metadata(folder / "coins-int8.onnx")
    assert (half.precision, eighth.precision) == ("fp16", "int8")
    assert half.parity is not None
    assert eighth.quantization is not None
    assert eighth.quantization.float_parity is not None
    assert eighth.quantization.images == 16
    assert set(half.id2label.values()) >= {"copper", "silver", "gold", "bimetal"}


def test_what_there_is_to_look_at(folder: Path) -> None:
    assert (folder / "coins-model" / "training_log.png").is_file()
    assert (folder / "coins-model" / "predictions" / "detector_001.png").is_file()
    assert (folder / "coins-plots" / "thresholds.csv").is_file()
    found = json.loads((folder / "found" / "predictions.json").read_text())
    assert len(found) == 16
    assert len(list((folder / "found").rglob("*.png"))) >= 16


def test_every_command_has_what_it_needs() -> None:
    """The four commands that lead from labelled pictures to scored files, and the README's, which are the same."""
    readme = (PAGE.parent.parent / "README.md").read_text(encoding="utf-8")
    for kind in ("train --data coins --from", "--precision fp16 --accuracy coins", "--precision int8 --calibration coins"):
        assert any(kind in command for command in COMMANDS), kind
        assert kind in readme
    assert sum(command.startswith("detr-export evaluate") for command in COMMANDS) == 1
