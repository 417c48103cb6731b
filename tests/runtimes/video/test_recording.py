"""Drawn videos and lines of results: sizes, times, what is there after an interruption, and what is replaced."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes.errors import InputError, OutputError
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.video import writing
from detr_export.runtimes.video.decoding import About
from detr_export.runtimes.video.frame import VideoFrame
from detr_export.runtimes.video.prediction import FramePrediction
from detr_export.runtimes.video.recording import Recording, recording_places
from detr_export.runtimes.video.sources import VideoSource
from tests.runtimes.video.drawn import UNIT, decoded, shown_at

ABOUT = About(UNIT, Fraction(10), None, Fraction(1))


def blocks(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A picture of four colours; compression changes little of it."""
    corners = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8))
    return np.array(corners.resize(size[::-1], Image.Resampling.NEAREST))


def prediction(number: int, pixels: np.ndarray, stamp: Fraction | None = None) -> FramePrediction:
    size = (pixels.shape[0], pixels.shape[1])
    nothing = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), (), size)
    frame = VideoFrame(number, Fraction(number, 10) if stamp is None else stamp, pixels)
    return FramePrediction(frame, nothing, Image.fromarray(pixels))


def record(place: Path, found: list[FramePrediction], about: About = ABOUT) -> Recording:
    with Recording(place) as recording:
        for item in found:
            recording.add(item, item.to_dict(), about)
    return recording


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether compression may have made one of the other: colours have half the resolution there."""
    return bool(np.abs(one.astype(int) - other).mean() < 6)


@pytest.mark.parametrize("size", [(48, 64), (47, 64), (48, 63), (47, 63), (1, 1), (2, 3)])
def test_the_size_stays_and_an_odd_one_grows(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = [blocks(seed, size) for seed in range(3)]
    record(tmp_path / "out", [prediction(number, item) for number, item in enumerate(pixels)])
    height, width = size
    frames = decoded(tmp_path / "out.mp4")
    assert len(frames) == 3
    for frame, item in zip(frames, pixels, strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        grown = np.pad(item, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        assert near(frame, grown) or min(size) < 8  # a few pixels are all edges
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert lines[2] == {"frame": 2, "time": 0.2, "image_size": list(size), "detections": []}


@pytest.mark.parametrize("unit", [UNIT, Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 1000)])
def test_times_are_those_of_the_frames(unit: Fraction, tmp_path: Path) -> None:
    times = [unit * step for step in (0, 3, 4, 90, 91, 600)]
    found = [prediction(number, blocks(number), time) for number, time in enumerate(times)]
    record(tmp_path / "out", found, About(unit, None, None, Fraction(1)))
    assert shown_at(tmp_path / "out.mp4") == times
    with av.open(str(tmp_path / "out.mp4")) as container:
        first = next(container.decode(video=0))
        assert first.pts == 0
        assert (first.colorspace, first.color_range) == (6, 1)


def test_times_that_do_not_grow_are_moved(tmp_path: Path) -> None:
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 10), Fraction(1, 20), Fraction(1)]
    record(tmp_path / "out", [prediction(number, blocks(number), time) for number, time in enumerate(times)])
    shown = shown_at(tmp_path / "out.mp4")
    assert shown == [Fraction(0), Fraction(1, 10), Fraction(1, 10) + UNIT, Fraction(1, 10) + 2 * UNIT, Fraction(1)]


def test_pixels_that_are_no_squares_stay_so(tmp_path: Path) -> None:
    record(tmp_path / "out", [prediction(0, blocks(0))], About(UNIT, None, None, Fraction(16, 15)))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


def test_a_changed_size_is_fitted_into_the_first(tmp_path: Path) -> None:
    first, second = blocks(0), blocks(1, (96, 64))
    recording = record(tmp_path / "out", [prediction(0, first), prediction(1, second), prediction(2, first)])
    assert recording.fitted == 1
    frames = decoded(tmp_path / "out.mp4")
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    inner = np.asarray(Image.fromarray(second).resize((32, 48)))
    assert near(frames[1][:, 16:48], inner)
    assert frames[1][:, :14].max() < 30  # black
    assert frames[1][:, 50:].max() < 30


def test_unfinished_files_can_be_read(tmp_path: Path) -> None:
    """What a kill leaves: here, a copy of the files while they are written."""
    copy = tmp_path / "copy.mp4"
    with Recording(tmp_path / "out") as recording:
        for number in range(120):
            item = prediction(number, blocks(number))
            recording.add(item, item.to_dict(), ABOUT)
        while recording._waiting:
            recording._waiting.popleft().result()
        copy.write_bytes((tmp_path / "out.mp4").read_bytes())
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(120))
    frames = decoded(copy)
    assert 60 <= len(frames) < 120
    assert near(frames[50], blocks(50))
    assert len(decoded(tmp_path / "out.mp4")) == 120


def test_an_exception_keeps_what_is_finished(tmp_path: Path) -> None:
    def work() -> None:
        with Recording(tmp_path / "out") as recording:
            for number in range(7):
                item = prediction(number, blocks(number))
                recording.add(item, item.to_dict(), ABOUT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(decoded(tmp_path / "out.mp4")) == 7
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 7


def test_old_files_stay_until_there_is_a_result(tmp_path: Path) -> None:
    for suffix in (".mp4", ".jsonl"):
        (tmp_path / f"out{suffix}").write_text("old")
    os.link(tmp_path / "out.mp4", tmp_path / "other")
    record(tmp_path / "out", [])
    assert (tmp_path / "out.jsonl").read_text() == "old"
    record(tmp_path / "out", [prediction(0, blocks(0))])
    assert len(decoded(tmp_path / "out.mp4")) == 1
    assert (tmp_path / "other").read_text() == "old"  # the file was replaced, and not written into


def test_places(tmp_path: Path) -> None:
    names = ["a/clip.mp4", "b/clip.mkv", "c.d/x.y.mp4"]
    videos = [VideoSource(str(tmp_path / name), "file", Path(name).stem) for name in names]
    places = recording_places(videos, tmp_path / "out", False)
    assert places == [tmp_path / "out" / name for name in ("clip", "clip-2", "x.y")]
    record(places[2], [prediction(0, blocks(0))])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["x.y.jsonl", "x.y.mp4"]
    with pytest.raises(OutputError, match=r"x\.y\.mp4 exists; add --overwrite"):
        recording_places(videos, tmp_path / "out", False)
    recording_places(videos, tmp_path / "out", True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/clip.mp4").write_bytes(b"")
    with pytest.raises(OutputError, match="is one of the videos, and would be overwritten"):
        recording_places(videos, tmp_path / "a", True)


@pytest.mark.parametrize("suffix", [".mp4", ".jsonl"])
def test_a_full_disk_is_an_error(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recording._created

    def created(self: Recording, path: Path) -> Any:
        return self._files.enter_context(Path("/dev/full").open("r+b")) if path.suffix == suffix else original(self, path)

    monkeypatch.setattr(Recording, "_created", created)
    with pytest.raises(OutputError, match=rf"cannot write .*out\{suffix}.*: No space left on device"):
        record(tmp_path / "out", [prediction(0, blocks(0))])


def test_frames_have_to_be_drawn(tmp_path: Path) -> None:
    item = prediction(0, blocks(0))
    with pytest.raises(InputError, match="not drawn; give predict_video a style"):
        record(tmp_path / "new", [FramePrediction(item.frame, item.result)])
    assert not list(tmp_path.iterdir())


def test_without_x264_it_is_mpeg_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CODECS", ("no such encoder", "mpeg4"))
    found = [prediction(number, blocks(number)) for number in range(3)]
    recording = record(tmp_path / "out", found, About(Fraction(1, 90_000), Fraction(10), None, Fraction(1)))
    assert recording.codec == "mpeg4"
    assert near(decoded(tmp_path / "out.mp4")[2], blocks(2))
    assert [round(float(time), 3) for time in shown_at(tmp_path / "out.mp4")] == [0, 0.1, 0.2]
    monkeypatch.setattr(writing, "CODECS", ("no such encoder",))
    with pytest.raises(OutputError, match="this ffmpeg has no encoder of no such encoder"):
        record(tmp_path / "none", found)
