"""Cameras and streams: lost and found again, on a clock of the test's own and from a server on this machine."""

from __future__ import annotations

import datetime
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.video import opening
from detr_export.runtimes.video.frame import VideoFrame
from detr_export.runtimes.video.live import Connect, live_frames
from detr_export.runtimes.video.reader import VideoReader
from detr_export.runtimes.video.sources import VideoSource
from tests.runtimes.video.drawn import RATE, decoded, pictures, write_video
from tests.runtimes.video.rtsp_server import RtspServer

PIXELS = np.zeros((2, 2, 3), np.uint8)


class World:
    """A clock, and a stream whose connections have so many frames each, or fail."""

    def __init__(self, connections: Sequence[int | str], fails_after: str = "gone") -> None:
        self.now, self.tries = 0.0, 0
        self.pauses: list[float] = []
        self._connections, self._fails_after = connections, fails_after

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return False

    @contextmanager
    def connect(self) -> Iterator[Iterator[VideoFrame]]:
        what = self._connections[self.tries] if self.tries < len(self._connections) else self._fails_after
        self.tries += 1
        if isinstance(what, str):
            raise ImageError(f"cannot open it: {what}; check it")
        yield self._frames(what)

    def _frames(self, count: int) -> Iterator[VideoFrame]:
        for number in range(count):
            yield VideoFrame(number, Fraction(number, 10), PIXELS)
            self.now += 0.1


def frames_of(world: World, patience: float = 30) -> tuple[list[VideoFrame], str]:
    frames: list[VideoFrame] = []
    connect: Connect = world.connect
    try:
        frames.extend(live_frames(connect, "it", patience, world.pause, world.clock))
    except ImageError as error:
        return frames, str(error)
    return frames, ""


def test_numbers_and_times_go_on_after_a_gap() -> None:
    world = World([3, "no route", "no route", 2, 1])
    frames, _ = frames_of(world)
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4, 5]
    # Lost at 0.3 s; half a second, one and two seconds later it is there again. Then lost at 4.0 s, for half a second.
    assert world.pauses[:4] == [0.5, 1.0, 2.0, 0.5]
    assert [round(frame.time, 6) for frame in frames] == [0.0, 0.1, 0.2, 3.8, 3.9, 4.5]


def test_a_stream_that_stays_away_is_an_error() -> None:
    world = World([3])
    frames, error = frames_of(world)
    assert len(frames) == 3
    assert world.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 6.5]
    lost = "it was lost after frame 2, at 0.20 s, and did not come back within 30 seconds (gone)"
    assert error == f"{lost}; the frames up to there were used"


def test_connections_without_a_frame_do_not_start_the_time_anew() -> None:
    world = World([1] + [0] * 50)
    _, error = frames_of(world, patience=5)
    assert sum(world.pauses) == 5
    assert error.endswith("did not come back within 5 seconds (it ended); the frames up to there were used")


def test_without_patience_the_end_is_the_end() -> None:
    world = World([2])
    assert len(frames_of(world, patience=0)[0]) == 2
    assert world.tries == 1
    assert frames_of(world, patience=0)[1] == "cannot open it: gone; check it"


@pytest.mark.parametrize(
    ("connections", "error"), [(["refused"], "cannot open it: refused"), ([0], "it ended before its first")]
)
def test_the_first_connection_is_tried_once(connections: list[int | str], error: str) -> None:
    world = World(connections)
    assert frames_of(world)[1].startswith(error)
    assert world.tries == 1


def test_closing_ends_the_pauses() -> None:
    world = World([1])
    assert [frame.number for frame in live_frames(world.connect, "it", 30, lambda seconds: True, world.clock)] == [0]


# ---- a server -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("stream") / "stream.ts", pictures(30, (96, 128)))


def test_frames_of_a_stream(recorded: Path) -> None:
    wanted = decoded(recorded)
    with RtspServer(recorded.read_bytes()) as server, VideoReader(server.address, reconnect=0) as reader:
        frames = list(reader)
    # The last frame of a transport stream ends where the next one begins, so the end of a connection may take it away.
    assert len(wanted) - 2 <= len(frames) + reader.dropped <= len(wanted)
    for frame in frames:
        assert np.array_equal(frame.pixels, wanted[frame.number])
        assert frame.stamp == Fraction(frame.number, RATE)


def test_a_stream_comes_back(recorded: Path) -> None:
    with RtspServer(recorded.read_bytes(), shares=[0.5, 0.4], pause=0.004) as server:
        with VideoReader(server.address, frames=40, reconnect=20) as reader:
            frames = list(reader)
        assert server.clients >= 3 - (reader.dropped > 0)
    assert len(frames) == 40
    numbers, stamps = [frame.number for frame in frames], [frame.stamp for frame in frames]
    assert numbers == sorted(set(numbers))
    assert stamps == sorted(set(stamps))


def test_a_password_is_used_and_not_told(recorded: Path) -> None:
    with RtspServer(recorded.read_bytes(), user="me:se@cret") as server:
        right = server.address.replace("//", "//me:se%40cret@")
        with VideoReader(right, frames=1) as reader:
            assert next(reader).size == (96, 128)
            assert reader.source.title == server.address
        with VideoReader(right.replace("cret", "cond")) as reader, pytest.raises(ImageError) as caught:
            next(reader)
    assert str(caught.value) == (
        f"cannot open {server.address}: server returned 401 Unauthorized (authorization failed); check the address, the "
        "network, user and password"
    )
    assert caught.value.__suppress_context__


def test_nobody_listens() -> None:
    with RtspServer(b"") as server:
        address = server.address
    with VideoReader(address) as reader, pytest.raises(ImageError, match=r"cannot open rtsp://127.*: connection refused; "):
        next(reader)


class TlsServer(RtspServer):
    """The same over TLS, with a certificate that no machine knows."""

    def __init__(self, stream: bytes, certificate: Path) -> None:
        super().__init__(stream)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self.address = self.address.replace("rtsp://127.0.0.1", "rtsps://localhost")

    def _talk(self, client: object) -> None:
        with self._context.wrap_socket(client, server_side=True) as wrapped:  # type: ignore[arg-type]
            super()._talk(wrapped)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """One for localhost, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    built = built.not_valid_after(now + datetime.timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(private + built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def test_an_unknown_certificate_is_refused(recorded: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TlsServer(recorded.read_bytes(), certificate) as server:
        with (
            VideoReader(server.address) as reader,
            pytest.raises(ImageError, match="that this machine knows its certificate"),
        ):
            next(reader)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with VideoReader(server.address, frames=1) as reader:
            assert next(reader).size == (96, 128)


# ---- cameras ------------------------------------------------------------------------------------------------------------


def test_a_camera_that_is_not_there() -> None:
    with VideoReader(VideoSource("987", "camera", "camera-987")) as reader, pytest.raises(ImageError) as caught:
        next(reader)
    assert str(caught.value).startswith("cannot open camera 987: ")
    assert str(caught.value).endswith("; is it connected, free, and may this user read it?")


@pytest.mark.parametrize(
    ("platform", "place", "form"),
    [("linux", "/dev/video1", "v4l2"), ("darwin", "1:none", "avfoundation"), ("win32", "video=second", "dshow")],
)
def test_cameras_of_all_systems(platform: str, place: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, name: str, kind: str) -> None:
            self.name, self.media_types = name, [kind]

    asked = []

    def fail(*arguments: object, **options: object) -> None:
        asked.append((arguments[0], options["format"]))
        raise av.FFmpegError(1, "not here")

    devices = [Device("first", "video"), Device("microphone", "audio"), Device("second", "video")]
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(av, "open", fail)
    monkeypatch.setattr(av, "enumerate_input_devices", lambda form: devices)
    source = VideoSource("1", "camera", "camera-1")
    with pytest.raises(ImageError, match="cannot open camera 1: not here; "), opening.opened(source):
        pass
    assert asked == [(place, form)]
    if platform == "win32":
        missing = VideoSource("2", "camera", "camera-2")
        with pytest.raises(ImageError, match="no camera 2: this machine has 2"), opening.opened(missing):
            pass
