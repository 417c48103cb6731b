"""Frames of files: their pixels, times and order; and files that are cut, damaged, hostile or no videos."""

from __future__ import annotations

import struct
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from detr_export.runtimes import limits
from detr_export.runtimes.errors import DetrError, ImageError, InputError
from detr_export.runtimes.video.frame import VideoFrame
from detr_export.runtimes.video.reader import VideoReader
from tests.runtimes.video.drawn import CODECS, RATE, UNIT, decoded, pictures, shown_at, write_video

FRAMES = 24
SIZE = (96, 128)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each format; not to be changed. The head of the MP4 comes first, so that a part of it can be read."""
    folder = tmp_path_factory.mktemp("videos")
    options = {".mp4": {"movflags": "faststart"}}
    return {
        suffix: write_video(folder / f"video{suffix}", pictures(FRAMES, SIZE), options=options.get(suffix))
        for suffix in CODECS
    }


def read_cut(path: Path) -> tuple[list[VideoFrame], str]:
    """The frames, and the error after them."""
    frames: list[VideoFrame] = []
    with VideoReader(path) as reader:
        try:
            frames.extend(reader)
        except ImageError as error:
            return frames, str(error)
    pytest.fail(f"{len(frames)} frames, and no error")


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_those_of_ffmpeg(suffix: str, videos: dict[str, Path]) -> None:
    with VideoReader(videos[suffix]) as reader:
        frames = list(reader)
        assert reader.expected is not None
        assert abs(reader.expected - FRAMES) <= 2  # of MPEG, the header says it only roughly
        assert (reader.dropped, reader.damaged) == (0, 0)
    wanted = decoded(videos[suffix])
    assert len(frames) == len(wanted) == FRAMES
    assert all(np.array_equal(frame.pixels, pixels) for frame, pixels in zip(frames, wanted, strict=True))
    assert [frame.number for frame in frames] == list(range(FRAMES))
    assert [frame.stamp for frame in frames] == shown_at(videos[suffix])
    assert frames[-1].time == pytest.approx((FRAMES - 1) / RATE, abs=0.002)
    assert threading.active_count() == 1 or "video" not in {thread.name for thread in threading.enumerate()}


def test_choices_of_frames(videos: dict[str, Path]) -> None:
    path = videos[".mp4"]

    def numbers(**options: float) -> list[int]:
        with VideoReader(path, **options) as reader:  # type: ignore[arg-type]
            found = [frame.number for frame in reader]
            assert reader.expected == len(found)
            return found

    assert numbers(every=5) == [0, 5, 10, 15, 20]
    assert numbers(frames=3) == [0, 1, 2]
    assert numbers(seconds=0.5) == [0, 1, 2, 3, 4]
    assert numbers(seconds=0.51, every=2) == [0, 2, 4]
    assert numbers(every=7, frames=2) == [0, 7]
    wrong: list[dict[str, float]] = [{"every": 0}, {"frames": 0}, {"seconds": 0}, {"seconds": float("nan")}]
    wrong += [{"reconnect": 3.0}]
    for options in wrong:
        with pytest.raises(InputError, match=f"^{next(iter(options))} "):
            VideoReader(path, **options)  # type: ignore[arg-type]


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [UNIT * step for step in (0, 7, 100, 101, 350, 1200)]
    path = write_video(tmp_path / "variable.mp4", pictures(6), times)
    with VideoReader(path) as reader:
        assert [frame.stamp for frame in reader] == times
    with VideoReader(path, seconds=0.5) as reader:
        assert [frame.number for frame in reader] == [0, 1, 2, 3]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_frames_are_upright(turned: int, mirrored: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", pictures(2, (32, 64)), turned=turned, mirrored=mirrored)
    with VideoReader(path) as reader:
        frames = list(reader)
    (plain, _) = decoded(path)  # PyAV does not turn them
    with av.open(str(path)) as container:
        matrix = next(container.decode(video=0)).side_data.get("DISPLAYMATRIX")
    a, b, _, c, d, *_ = (1, 0, 0, 0, 1) if matrix is None else struct.unpack("=9i", bytes(matrix))
    # Where the corner pixels are shown, by the matrix itself.
    height, width = plain.shape[:2]
    upright = frames[0].pixels
    assert upright.shape[:2] == ((height, width) if turned % 180 == 0 else (width, height))
    for y, x in ((0, 0), (0, width - 1), (height - 1, 0), (3, 5)):
        to_x, to_y = np.sign([a * (x + 0.5) + c * (y + 0.5), b * (x + 0.5) + d * (y + 0.5)]) * [
            abs(np.sign(a)) * (x + 0.5) + abs(np.sign(c)) * (y + 0.5),
            abs(np.sign(b)) * (x + 0.5) + abs(np.sign(d)) * (y + 0.5),
        ]
        column = int(to_x % upright.shape[1])
        row = int(to_y % upright.shape[0])
        assert np.array_equal(upright[row, column], plain[y, x])
    assert mirrored or turned or np.array_equal(upright, plain)


def test_another_angle_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slanted.mp4", pictures(2), turned=30)
    with VideoReader(path) as reader, pytest.raises(ImageError, match="turned by another angle than 90, 180 or 270"):
        next(reader)


def test_sound_is_passed_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "sound.mp4", pictures(4), sound=True)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 4


# ---- cut and damaged ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8, 0.93])
@pytest.mark.parametrize("suffix", CODECS)
def test_a_cut_file_gives_its_frames_and_then_the_error(
    suffix: str, share: float, videos: dict[str, Path], tmp_path: Path
) -> None:
    content = videos[suffix].read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    frames, error = read_cut(path)
    assert 0 < len(frames) < FRAMES
    last = f"its last frame is {frames[-1].number}, at {frames[-1].time:.2f} s"
    assert last in error
    assert error.startswith(f"{path} is cut short or damaged: ")
    whole = decoded(videos[suffix])
    exact = [np.array_equal(frame.pixels, whole[round(frame.stamp * RATE)]) for frame in frames]
    assert all(exact), exact


def test_damage_in_the_middle_leaves_the_other_frames(videos: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(videos[".avi"].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path = tmp_path / "damaged.avi"
    path.write_bytes(content)
    frames, error = read_cut(path)
    assert 0 < len(frames) < FRAMES
    assert frames[-1].number > FRAMES // 2
    assert "of its frames or their parts cannot be decoded, the first one after frame" in error
    assert error.endswith("the others were used")


def test_what_is_no_video(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        audio = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate, silence.pts = 8000, 0
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    cases = {"text.mp4": b"hello " * 500, "noise.mkv": np.random.default_rng(0).bytes(5000)}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        _, error = read_cut(tmp_path / name)
        assert error.startswith(f"cannot open {tmp_path / name}: ")
        assert error.endswith("; expected a whole video file, such as .mp4, .mkv, .webm or .avi")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    _, error = read_cut(empty)
    assert error.startswith(f"{empty} is empty (0 bytes): expected a whole video file")
    _, error = read_cut(sound)
    assert error == f"{sound} has no video; expected a file or stream with moving pictures"


def test_a_file_reaches_no_other_file(videos: dict[str, Path], tmp_path: Path) -> None:
    inner = videos[".ts"]
    description = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{inner}\n#EXT-X-ENDLIST\n"
    hostile = {
        "list.mp4": f"ffconcat version 1.0\nfile '{inner}'\n",
        "relative.mkv": "ffconcat version 1.0\nfile video.ts\n",
        "playlist.mp4": playlist,
        "playlist.ts": playlist,
        "session.mp4": description,
        "dash.mp4": f"<?xml version='1.0'?><MPD><Period><AdaptationSet>{inner}</AdaptationSet></Period></MPD>",
    }
    (tmp_path / "video.ts").write_bytes(inner.read_bytes())
    for name, text in hostile.items():
        (tmp_path / name).write_text(text)
        frames, error = read_cut(tmp_path / name)
        assert not frames
        assert error.startswith(f"cannot open {tmp_path / name}: ")
    with av.open(str(tmp_path / "list.mp4"), options={"safe": "0"}) as container:  # or this would be no attack
        assert len(list(container.decode(video=0))) == FRAMES


def test_large_frames_are_refused(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=96 * 128 - 1))
    _, error = read_cut(videos[".mp4"])
    assert error.startswith(f"the number of pixels of a frame of {videos['.mp4']} is 12288; expected at most 12287")
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=96 * 128))
    with VideoReader(videos[".mp4"]) as reader:
        assert next(reader).size == SIZE


def test_frames_may_change_their_size(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{name}.ts", pictures(5, size)) for name, size in (("a", (48, 64)), ("b", (80, 32)))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoReader(path) as reader:
        frames = list(reader)
    assert [frame.size for frame in frames] == [(48, 64)] * 5 + [(80, 32)] * 5
    assert [frame.stamp for frame in frames] == [Fraction(number, RATE) for number in range(10)]  # those of b.ts jump back


def test_closing_early_ends_the_thread(videos: dict[str, Path]) -> None:
    reader = VideoReader(videos[".mp4"])
    assert next(reader).stamp == Fraction(0)
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "video"]
    with pytest.raises((StopIteration, DetrError)):
        next(reader)
