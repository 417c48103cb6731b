"""`detr-export predict --engine ray`: what its command line refuses before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.commands import run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain"], "--explain cannot be used with --engine ray"),
        (["--all-frames"], "--all-frames cannot be used with --engine ray"),
        (["--max-padding", "0.1"], "--max-padding cannot be used with --engine ray"),
        (["--line-width", "2"], "--line-width cannot be used with --engine ray"),
        (["--hide-labels"], "--hide-labels cannot be used with --engine ray"),
        (["--timeout", "3"], "--timeout cannot be used with --engine ray"),
        (["--format", "csv"], "--engine ray writes a Parquet table"),
        (["--format", "yolo"], "--engine ray writes a Parquet table"),
        (["--every", "2", "--seconds", "3"], "--every, --seconds cannot be used with --engine ray"),
        (["street.mp4"], "street.mp4 is a video, and --engine ray is for pictures"),
        (["--batch", "2", "--batch-from", "report.json"], "--batch-from chooses the batch"),
    ],
)
def test_options_that_do_not_apply(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "street.mp4").touch()
    named = [] if options == ["street.mp4"] else ["a.jpg"]
    done = run(capsys, "predict", "m.onnx", *named, "--engine", "ray", "-o", tmp_path / "out", *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_options_of_ray_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--workers", "2"], ["--address", "auto"], ["--column", "x"], ["--batch-from", "r.json"]):
        done = run(capsys, "predict", "m.onnx", "a.jpg", *options)
        assert done.code == 2
        assert f"{options[0]} cannot be used without --engine ray" in done.err
    done = run(capsys, "predict", "m.onnx", "a.jpg", "--engine", "ray")
    assert done.code == 2
    assert "--engine ray needs --output DIR" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "semantic"], "task is 'semantic'; expected one of detection, panoptic, instances on Ray"),
        (["--format", "coco", "--task", "panoptic"], "the format coco holds objects with boxes"),
        (["--address", "ray://a:1"], "the address is ray://a:1, and Ray Data needs a driver in the cluster"),
        (["--device", "cuda:1"], "device is cuda:1, and Ray chooses the GPU of each worker"),
        (["--batch-from", "report.json"], "report.json does not exist"),
        (["-o", "s3://bucket/results"], "s3:/bucket/results is an address, and results go into a folder"),
    ],
)
def test_what_the_run_refuses(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "predict", "m.onnx", "a.jpg", "--engine", "ray", "-o", tmp_path / "out", *options)
    assert done.code == 1
    (line,) = done.errors
    assert message in line
