"""A picture on which processes crash gets a row with an error, and others do not pay for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from detr_export.runtimes.distributed import listing
from detr_export.runtimes.distributed.attempts import FOLDER, READ, RUN, Attempts, attempts, forget_attempts
from detr_export.runtimes.distributed.job import Job, ModelOptions, Work, surroundings
from detr_export.runtimes.distributed.model import ModelWorker, model_digest
from detr_export.runtimes.distributed.reading import read_pictures
from detr_export.runtimes.predictor import Predictor
from tests.runtimes.distributed.comparing import copies, local_table, table_in

ROOT = Path(__file__).parents[3]


def die(output: Path, *turns: int) -> None:
    """A process that has a unit, comes to some pictures, and is killed: nothing runs after its last line."""
    file = output / FOLDER / f"{READ}-{40:012d}"
    file.parent.mkdir(exist_ok=True)
    found = Attempts(file)
    found.add("try")
    for number in turns:
        assert not found.crashed(number)
        found.at(number)


def test_a_picture_is_left_out_after_two_deaths_that_were_noted(tmp_path: Path) -> None:
    die(tmp_path, 40, 41)
    die(tmp_path, 40, 41)
    die(tmp_path, 40, 41)  # now they are noted
    with attempts(tmp_path, READ, 40) as tries:
        assert tries.noting
        assert not tries.crashed(41)
    assert [*(tmp_path / FOLDER).iterdir()] == []
    for _ in range(4):
        die(tmp_path, 40, 41)
    with attempts(tmp_path, READ, 40) as tries:
        assert [number for number in range(40, 43) if tries.crashed(number)] == [41]
    with attempts(tmp_path, RUN, 40) as tries:  # the other stage
        assert not tries.noting
        assert not tries.crashed(41)


def test_processes_that_die_at_different_pictures_blame_none(tmp_path: Path) -> None:
    for last in (40, 40, 40, 41, 42):
        die(tmp_path, *range(40, last + 1))
    with attempts(tmp_path, READ, 40) as tries:
        assert tries.noting
        assert not any(tries.crashed(number) for number in range(40, 44))


def test_an_exception_and_a_new_start_forget(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), attempts(tmp_path, READ, 0) as tries:
            1 / 0  # noqa: B018
        assert not tries.noting
    die(tmp_path, 40)
    forget_attempts(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_an_actor_leaves_the_picture_out(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    """And the results of the others are those of a run without it."""
    folder = copies(photo, tmp_path / "pictures", 4)
    listing.write_listing(listing.find_pictures([str(folder)], None, tmp_path), tmp_path / listing.FOLDER)
    job = Job(tmp_path, "token", Work(threshold=0.02), ModelOptions(str(tiny_onnx), threads=1), None, *surroundings())
    with Predictor.load(tiny_onnx, threads=1) as predictor:
        (messages,) = read_pictures(pa.table({"first": [0], "stop": [4]}), job, predictor.preparation)
    worker = ModelWorker(job, model_digest(str(tiny_onnx)))

    def rows() -> pa.Table:
        (content,) = worker(messages)["rows"].to_pylist()
        return pa.ipc.open_stream(content).read_all().replace_schema_metadata(None)

    expected = local_table(tiny_onnx, [str(folder)], "detection", 0.02)
    assert rows().equals(expected)
    (tmp_path / FOLDER / f"{RUN}-{0:012d}").write_text("try\ntry\n0\n1\n2\ntry\n0\n1\n2\n")
    found = rows()
    path = expected["path"][2].as_py()
    assert found["error"].to_pylist() == [
        None,
        None,
        f"{path}: processes that ran the model on it crashed; expected a picture that the model takes",
        None,
    ]
    for number in (0, 1, 3):
        assert found.slice(number, 1).equals(expected.slice(number, 1))


def test_a_file_that_ends_the_process_that_opens_it(tiny_onnx: Path, photo: Path, tmp_path: Path) -> None:
    folder = copies(photo, tmp_path / "pictures", 40)
    (folder / "0017.png").rename(folder / "0017-poison.png")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def end(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('poison.png'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(end)\n"
    )
    command = [sys.executable, "-m", "detr_export", "predict", str(tiny_onnx), str(folder), "--engine", "ray"]
    command += ["-o", str(tmp_path / "out"), "--threshold", "0.02", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    found = table_in(tmp_path / "out")
    expected = local_table(tiny_onnx, [str(folder)], "detection", 0.02)
    (number,) = [row for row, error in enumerate(found["error"].to_pylist()) if error is not None]
    assert found["path"][number].as_py().endswith("0017-poison.png")
    assert "processes that read it crashed" in found["error"][number].as_py()
    assert found.filter(found["error"].is_null()).equals(expected.filter(found["error"].is_null()))
    assert not (tmp_path / "out" / FOLDER).exists()
