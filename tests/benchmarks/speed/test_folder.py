"""The benchmark of folders: every variant gives the same, and the report has all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detr_export.benchmarks.speed import folder


@pytest.fixture
def pictures(photo: Path, tmp_path: Path) -> Path:
    """Five parts of a photograph, in two sizes that share a batch with a little padding."""
    (tmp_path / "pictures").mkdir()
    whole = Image.open(photo)
    for number in range(5):
        left = 40 * number
        whole.crop((left, 0, left + (200 if number < 3 else 205), 150)).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def test_a_report(tiny_onnx: Path, pictures: Path, tmp_path: Path) -> None:
    common = ["--model", str(tiny_onnx), "--folder", str(pictures), "--threads", "1", "--rounds", "2"]
    folder.main([*common, "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "detection.json").read_text())
    names = [*folder.VARIANTS, *folder.PADDED]
    assert [len(report["ms"][name]) for name in names] == [2] * len(names)
    assert report["pictures"] == 5
    assert list(report["changes"]) == names
    for name in folder.VARIANTS:
        assert report["changes"][name]["score"] < 1e-4
        assert report["changes"][name]["lost"] == report["changes"][name]["gained"] == 0
    assert report["changes"][names[-1]]["score"] > 1e-4  # padding changes the numbers, and this sees it
    assert report["parts"]["clock"]["the model"] > 0
    assert report["parts"]["clock"]["kilobytes at level 1"] >= report["parts"]["clock"]["kilobytes at level 6"] * 0.8


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "0"], ["--folder", "nothing-of-this-name"]])
def test_refuses(arguments: list[str], tiny_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"error: (rounds is 0|threads is 0|nothing-of-this-name does not exist)"):
        folder.main(["--model", str(tiny_onnx), *arguments])
    assert capsys.readouterr().out == ""
