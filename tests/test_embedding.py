"""The programs of docs/embedding.md: each is part of a file that a test runs. `frames.py` runs here.

`make cpp-test` runs examples/cpp/main.cpp, and `make web-test` examples/web/smallest.html.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Predictor

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"From `([^`]+)`[^\n]*(?:\n[^\n]+)*\n\n```\w+\n(.*?)```", PAGE, re.S)
FRAMES = ROOT / "examples/frames.py"


@pytest.mark.parametrize(("file", "program"), PROGRAMS)
def test_a_program_is_part_of_its_file(file: str, program: str) -> None:
    assert program in (ROOT / file).read_text(encoding="utf-8")
    assert len(program.splitlines()) <= 30


def test_which_programs_there_are() -> None:
    assert [file for file, _ in PROGRAMS] == ["examples/cpp/main.cpp", "examples/frames.py", "examples/web/smallest.html"]
    assert "detr_detect main.cpp" in (ROOT / "examples/cpp/CMakeLists.txt").read_text(encoding="utf-8")
    assert "smallest.html" in (ROOT / "examples/web/test.mjs").read_text(encoding="utf-8")


def _run(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, FRAMES, *arguments], input=data, capture_output=True, timeout=120, check=False)


def test_frames(tiny_onnx: Path, photo: Path) -> None:
    pictures = [np.asarray(Image.open(photo).resize((160, 100))), np.asarray(Image.open(photo).resize((160, 100)))[::-1]]
    ran = _run(tiny_onnx, "160x100", data=b"".join(picture[..., ::-1].tobytes() for picture in pictures))
    assert ran.returncode == 0, ran.stderr
    with Predictor.load(tiny_onnx) as predictor:
        expected = [predictor.detect(picture, 0.7).to_dict()["detections"] for picture in pictures]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [[item["name"] for item in frame] for frame in found] == [[item["name"] for item in frame] for frame in expected]
    assert any(expected)
    assert expected[0] != expected[1]


def test_frames_of_another_size(tiny_onnx: Path) -> None:
    cut = _run(tiny_onnx, "160x100", data=bytes(1000))
    assert (cut.returncode, cut.stderr.decode().strip()) == (
        1,
        "the last frame has 1000 bytes; expected 48000 for 160x100: is the size right?",
    )
    assert "python frames.py" in _run().stderr.decode()
