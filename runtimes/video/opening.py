"""Opens videos, cameras and streams with PyAV, and lets ffmpeg reach nothing else.

What a file says may be hostile: there are formats that name other files and addresses. So a file is read through Python, as
one of the formats that hold video themselves, and ffmpeg may open nothing on its own. A stream may use the network, and no
file.
"""

from __future__ import annotations

import io
import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Optional

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.files import require_regular
from detr_export.runtimes.limits import current, require_at_most
from detr_export.runtimes.video.completeness import what_is_missing
from detr_export.runtimes.video.sources import CAMERA, FILE, TLS, VideoSource

# Formats that hold their video themselves. Playlists, lists of files and descriptions of sessions are none.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf"
_NETWORK = "rtsp,rtp,udp,tcp,tls,crypto"
_READ_BYTES = 1 << 18  # of a file at once
_THREADS = 4  # of a decoder, at most
_OPEN_SECONDS, _READ_SECONDS = 10.0, 5.0  # longest silence of a stream


@dataclass(frozen=True)
class OpenVideo:
    """A video that is ready to be decoded."""

    container: InputContainer
    stream: VideoStream  # its pictures
    missing: Optional[str] = None  # what the file lacks at its end, as far as it says so in front


@contextmanager
def opened(source: VideoSource) -> Iterator[OpenVideo]:
    """Opens a video, and closes it.

    Raises:
        ImageError: it is not there, cannot be read, has no pictures, or its pictures are too large.
    """
    with ExitStack() as stack:
        try:
            file = None
            if source.kind == FILE:
                require_regular(source.given, ImageError)
                file = stack.enter_context(io.FileIO(source.given))
                if not os.fstat(file.fileno()).st_size:
                    raise ImageError(f"{source.title} is empty (0 bytes): {_remedy(source)}; copy or download it again")
            missing = None if file is None else what_is_missing(file)
            container = stack.enter_context(_container(source, file))
        except (av.FFmpegError, OSError) as error:
            raise ImageError(f"cannot open {source.title}: {reason(error)}; {_remedy(source)}") from None
        yield OpenVideo(container, _video_stream(container, source.title), missing)


def reason(error: Exception) -> str:
    """What ffmpeg says was wrong. Its whole message would have the address with its password."""
    if isinstance(error, av.ArgumentError):  # "Invalid argument": of a format that is not allowed, for example
        return "it is not of a format that can be read"
    text = " ".join(str(getattr(error, "strerror", None) or type(error).__name__).split())
    return text[:1].lower() + text[1:]


def _container(source: VideoSource, file: Optional[io.FileIO]) -> InputContainer:
    pixels = str(current().pixels)
    if file is not None:
        options = {"protocol_whitelist": "", "format_whitelist": _FORMATS, "max_pixels": pixels}
        return av.open(file, "r", options=options, buffer_size=_READ_BYTES)
    if source.kind == CAMERA:
        place, form = _camera(int(source.given))
        return av.open(place, "r", format=form)
    options = {
        "protocol_whitelist": _NETWORK,
        "rtsp_flags": "prefer_tcp",  # UDP, where the machine does not offer TCP, loses parts of frames
        "max_pixels": pixels,
    }
    if source.given.lower().startswith(TLS):
        options["tls_verify"] = "1"  # ffmpeg by itself takes any certificate
        known = ssl.get_default_verify_paths().cafile  # or what SSL_CERT_FILE names
        if known is not None:
            options["ca_file"] = known
    return av.open(source.given, "r", format="rtsp", options=options, timeout=(_OPEN_SECONDS, _READ_SECONDS))


def _camera(number: int) -> tuple[str, str]:
    """The name of a camera and ffmpeg's format for it."""
    if sys.platform == "darwin":
        return f"{number}:none", "avfoundation"
    if sys.platform == "win32":
        return f"video={_windows_camera(number)}", "dshow"
    return f"/dev/video{number}", "v4l2"


def _windows_camera(number: int) -> str:
    """DirectShow knows cameras by their names."""
    enumerate_devices = getattr(av, "enumerate_input_devices", None)
    if enumerate_devices is None:
        raise ImageError("this PyAV does not list the cameras of Windows; run: pip install --upgrade av")
    names = [device.name for device in enumerate_devices("dshow") if "video" in device.media_types]
    if number >= len(names):
        raise ImageError(f"there is no camera {number}: this machine has {len(names)}; the first one is 0")
    return str(names[number])


def _video_stream(container: InputContainer, title: str) -> VideoStream:
    # The cover of an album is a stream of one picture.
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise ImageError(f"{title} has no video; expected a file or stream with moving pictures")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if stream is best), streams[0])
    if stream.codec_context is None:
        raise ImageError(f"{title} has a video that this ffmpeg cannot decode; convert it, to H.264 for example")
    require_at_most("pixels", stream.width * stream.height, f"the number of pixels of a frame of {title}", ImageError)
    stream.codec_context.options = {"max_pixels": str(current().pixels)}  # the size may change on the way
    stream.codec_context.thread_count = min(_THREADS, os.cpu_count() or 1)
    return stream


def _remedy(source: VideoSource) -> str:
    if source.kind == FILE:
        return "expected a whole video file, such as .mp4, .mkv, .webm or .avi"
    if source.kind == CAMERA:
        return "is it connected, free, and may this user read it?"
    certificate = "" if not source.given.lower().startswith(TLS) else ", and that this machine knows its certificate"
    return f"check the address, the network, user and password{certificate}"
