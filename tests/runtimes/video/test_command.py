"""`detr-export predict` on videos, as a user meets it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detr_export.runtimes import Predictor
from tests.runtimes.video.drawn import decoded, pictures, shown_at, write_video
from tests.runtimes.video.rtsp_server import RtspServer
from tests.test_cli import ENVIRONMENT, START, fails, names, run, warm


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames; not to be changed."""
    return write_video(tmp_path_factory.mktemp("command") / "street.mp4", pictures(12))


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_results_go_into_two_files(tiny_onnx: Path, video: Path, tmp_path: Path) -> None:
    done = run("predict", tiny_onnx, video, "--threshold", "0.1", "-o", tmp_path / "out", "--every", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{video}: 6 frames, [\d.]+ a second: .*\n", done.stdout)
    assert names(tmp_path / "out") == ["street.jsonl", "street.mp4"]
    found = lines((tmp_path / "out/street.jsonl").read_text())
    frames = decoded(video)[::2]
    assert shown_at(tmp_path / "out/street.mp4") == shown_at(video)[::2]
    with Predictor.load(tiny_onnx) as predictor:
        for number, (line, pixels) in enumerate(zip(found, frames, strict=True)):
            wanted = predictor.detect(pixels, 0.1).to_dict()
            assert line == {"video": str(video), "frame": 2 * number, "time": 2 * number / 10, **wanted}


def test_json_is_a_line_for_each_frame(tiny_onnx: Path, video: Path, tmp_path: Path) -> None:
    other = tmp_path / "bad.mp4"
    other.write_bytes(b"no video")
    done = warm().run(["predict", str(tiny_onnx), str(other), str(video), "--json", "--frames", "2"])
    assert done.returncode == 1
    bad, first, second = lines(done.stdout)
    assert bad["video"] == str(other)
    assert str(bad["error"]).startswith(f"cannot open {other}: ")
    assert [(line["video"], line["frame"]) for line in (first, second)] == [(str(video), 0), (str(video), 1)]
    assert done.stderr == f"error: {bad['error']}\n"


def test_an_error_that_ends_the_command_is_the_last_line(tiny_onnx: Path, video: Path, tmp_path: Path) -> None:
    before = """
from detr_export.runtimes.video import writing
from detr_export.runtimes.errors import OutputError
def add(self, picture, stamp):
    if stamp: raise OutputError("cannot write")
writing.VideoWriter.add = add
writing.VideoWriter.finish = lambda self: None
"""
    done = run("predict", tiny_onnx, video, "-o", tmp_path / "out", "--json", before=before)
    assert done.returncode == 1
    *found, error = lines(done.stdout)
    assert found
    assert error == {"error": {"kind": "OutputError", "message": "cannot write"}}
    assert done.stderr == "error: cannot write\n"
    nothing = warm().run(["predict", str(tmp_path / "no.onnx"), str(video), "--json"])
    assert json.loads(nothing.stdout)["error"]["kind"] == "ArtifactError"


def test_a_cut_video_keeps_its_results(tiny_onnx: Path, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", pictures(20))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    done = warm().run(["predict", str(tiny_onnx), str(cut), "-o", str(tmp_path / "out")])
    assert done.returncode == 1
    found = lines((tmp_path / "out/cut.jsonl").read_text())
    assert 5 < len(found) < 20
    assert len(decoded(tmp_path / "out/cut.mp4")) == len(found)
    assert re.fullmatch(r"error: .*cut\.mkv is cut short or damaged: its last frame is .*\n", done.stderr)
    assert f"its last frame is {found[-1]['frame']}, at " in done.stderr
    assert f"cut.mkv: {len(found)} frames, " in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--all-frames"], "--all-frames cannot be used on videos"),
        (["--allow-truncated", "--allow-http"], "--allow-truncated, --allow-http cannot be used on videos"),
        (["--explain"], "--explain cannot be used on videos"),
        (["-o", "out", "--format", "json"], "--format cannot be used on videos"),
        (["--max-padding", "0.1", "--batch", "2"], "--max-padding cannot be used on videos"),
        (["--reconnect", "3"], "--reconnect is for cameras and streams, and "),
        (["PHOTO"], "pictures and videos take a command each"),
        (["rtsp://host/a"], "is live, so nothing else can run beside it"),
        (["--every", "0"], "Invalid value for '--every'"),
    ],
)
def test_what_is_wrong_usage(options: list[str], said: str, tiny_onnx: Path, video: Path, photo: Path) -> None:
    given = [str(photo) if option == "PHOTO" else option for option in options]
    done = warm().run(["predict", str(tiny_onnx), str(video), *given])
    assert done.returncode == 2
    assert said in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())


@pytest.mark.parametrize("option", ["--every", "--frames", "--seconds", "--reconnect"])
def test_pictures_refuse_what_is_for_videos(option: str, tiny_onnx: Path, photo: Path) -> None:
    done = warm().run(["predict", str(tiny_onnx), str(photo), option, "2"])
    assert done.returncode == 2
    assert f"{option} cannot be used on pictures" in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())


def test_an_old_file_is_not_replaced(tiny_onnx: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "street.jsonl").write_text("old")
    line = fails("predict", tiny_onnx, video, "-o", tmp_path)
    assert line == f"error: {tmp_path / 'street.jsonl'} exists; add --overwrite to replace it"
    assert names(tmp_path) == ["street.jsonl"]
    assert "and would be overwritten" in fails("predict", tiny_onnx, video, "-o", video.parent, "--overwrite")


def test_without_pyav(tiny_onnx: Path, video: Path) -> None:
    line = fails("predict", tiny_onnx, video, before="import sys; sys.modules['av'] = None")
    assert line == "error: av is not installed; run: pip install 'detr-export[video]'"


def test_interrupting_a_stream_keeps_what_is_finished(tiny_onnx: Path, tmp_path: Path) -> None:
    stream = write_video(tmp_path / "stream.ts", pictures(60)).read_bytes()
    out = tmp_path / "out"
    with RtspServer(stream * 50, pause=0.02) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", START, "predict", str(tiny_onnx), server.address, "-o", str(out), "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        )
        written = out / "live.jsonl"
        while process.poll() is None and not (written.exists() and written.read_text().count("\n") > 5):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors == "interrupted\n"
    found = lines(written.read_text())
    assert f"{server.address}: " in printed
    assert [line["video"] for line in found] == [server.address] * len(found)
    assert len(decoded(out / "live.mp4")) == len(found)
    assert names(out) == ["live.jsonl", "live.mp4"]
