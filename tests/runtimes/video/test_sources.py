"""What is a video, a camera or a stream, and what may stand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.sources import find_sources
from detr_export.runtimes.video.sources import find_videos, video_source, without_password


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.MKV", "c.txt", "videos.mp4/inside.mp4", "only/x.mp4", "mixed/x.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"x")
    Image.new("RGB", (8, 8)).save("d.png")
    Image.new("RGB", (8, 8)).save("mixed/e.png")
    return tmp_path


def test_what_is_a_video(folder: Path) -> None:
    found = find_videos(["a.mp4", "b.MKV", "./a.mp4", "*.mp4"])
    assert [(video.given, video.kind, video.name) for video in found] == [("a.mp4", "file", "a"), ("b.MKV", "file", "b")]
    for others in (
        ["d.png"],
        ["c.txt"],
        ["-"],
        ["mixed"],
        ["videos.mp4"],
        ["*.png"],
        ["https://host/a.mp4"],
        ["https://host/a?b=*"],
    ):
        assert find_videos(others) == ()


def test_cameras_and_streams(folder: Path) -> None:
    (camera,) = find_videos(["0"])
    assert (camera.kind, camera.name, camera.title, camera.live) == ("camera", "camera-0", "camera 0", True)
    (stream,) = find_videos(["RTSP://me:secret@host:554/live/main?x=1"])
    assert (stream.kind, stream.name, stream.live) == ("stream", "main", True)
    assert stream.title == "RTSP://host:554/live/main?x=1"
    assert "secret" not in repr(stream)
    Path("0").write_bytes(b"")  # a file comes first
    assert find_videos(["0"]) == ()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://host/a", "rtsp://host/a"),
        ("rtsp://me:pw@host:1/a@b", "rtsp://b"),  # where a password ends is not known, so nothing of it is shown
        ("rtsp://me:p/w@host/a", "rtsp://host/a"),
        ("rtsp://me:p?w#@host/a", "rtsp://host/a"),
        ("rtsp://host/user=me&password=pw&channel=1", "rtsp://host/user=me&password=***&channel=1"),
        ("rtsps://host/?PWD=pw&access_token=t", "rtsps://host/?PWD=***&access_token=***"),
    ],
)
def test_passwords_are_not_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown


@pytest.mark.parametrize("address", ["rtsp://", "rtsp:///a", "rtsp://me:secret@[x/a"])
def test_addresses_of_no_machine(address: str) -> None:
    with pytest.raises(InputError, match="expected rtsp://HOST/PATH") as caught:
        video_source(address)
    assert "secret" not in str(caught.value)


def test_what_does_not_go_together(folder: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mp4 is a video and d\.png is not; .* a command each"):
        find_videos(["a.mp4", "d.png"])
    with pytest.raises(InputError, match="camera 1 is live, so nothing else can run beside it"):
        find_videos(["a.mp4", "1"])
    with pytest.raises(ImageError, match="does not exist"):
        find_videos(["no.mp4"])
    with pytest.raises(ImageError, match="is not a regular file: it is a folder"):
        video_source("only")


def test_videos_in_folders_are_skipped_and_a_note_says_so(folder: Path) -> None:
    note = find_sources(["mixed"]).note()
    assert note == "skipped 1 file that Pillow does not read: 1 .mp4; name videos to predict on them"
    with pytest.raises(ImageError, match="use a glob to take its videos or files with other names"):
        find_sources(["only"])
