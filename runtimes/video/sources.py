"""Which arguments of `detr-export predict` are videos: files by their suffix, cameras by number, streams by address."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Union
from urllib.parse import urlsplit

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.files import require_regular
from detr_export.runtimes.processing.image_paths import VIDEO_SUFFIXES, expand_glob, missing
from detr_export.runtimes.sources import name_of_address

FILE, CAMERA, STREAM = "file", "camera", "stream"

TLS = "rtsps://"

_SCHEMES = ("rtsp://", TLS)
_CAMERA = re.compile(r"[0-9]{1,3}")
_SECRET = re.compile(r"((?:pass|pwd|token|secret|auth|key)[a-z_-]*=)[^&;/?#\s]*", re.IGNORECASE)


@dataclass(frozen=True, repr=False)
class VideoSource:
    """One video, camera or stream."""

    given: str  # the path, number or address, which may have a password
    kind: str  # `FILE`, `CAMERA` or `STREAM`
    name: str  # of its results, without a suffix

    @property
    def live(self) -> bool:
        """Whether its frames come whether or not somebody takes them."""
        return self.kind != FILE

    @property
    def title(self) -> str:
        """What results and messages call it. An address has no user, password or token there."""
        if self.kind == CAMERA:
            return f"camera {self.given}"
        return without_password(self.given) if self.kind == STREAM else self.given

    def __repr__(self) -> str:
        return f"VideoSource({self.title!r})"


def without_password(address: str) -> str:
    """An address without what stands before `@`, and with stars in place of the values that are named like a secret."""
    scheme, separator, rest = address.partition("://")
    end = re.search(r"[/?#]", rest)
    place = rest if end is None else rest[: end.start()]
    if "@" in rest[len(place) :]:  # a password with a slash in it: what is its end, nobody knows
        place = rest[: rest.rindex("@") + 1]
    path = _SECRET.sub(r"\1***", rest[len(place) :])
    return f"{scheme}{separator}{place.rpartition('@')[2]}{path}"


def video_source(given: Union[str, os.PathLike[str]]) -> VideoSource:
    """The source for a video that is named: a file whatever its suffix, the number of a camera, or an address.

    Raises:
        ImageError: there is no such file, or it is no regular one.
        InputError: the address is none.
    """
    text = os.fspath(given)
    if text.lower().startswith(_SCHEMES):
        return VideoSource(text, STREAM, _name_of_stream(text))
    if _is_camera(text):
        return VideoSource(text, CAMERA, f"camera-{text}")
    if not os.path.lexists(text):
        raise missing(text)
    require_regular(text, ImageError)
    return VideoSource(text, FILE, Path(text).stem)


def find_videos(given: Iterable[str]) -> tuple[VideoSource, ...]:
    """The videos that were named, each once. Videos in folders are not looked for.

    Args:
        given: files, patterns, numbers of cameras and addresses.

    Returns:
        No videos, if nothing that was named is one.

    Raises:
        ImageError: a video does not exist.
        InputError: pictures and videos are mixed, or there is something else beside a camera or stream.
    """
    videos: dict[str, VideoSource] = {}
    other = None
    for text in given:
        for item in _expanded(text):
            if _is_video(item):
                source = video_source(item)
                videos.setdefault(os.path.abspath(item) if source.kind == FILE else item, source)
            else:
                other = item
    found = tuple(videos.values())
    if found and other is not None:
        raise InputError(f"{found[0].title} is a video and {other} is not; pictures and videos take a command each")
    live = next((source for source in found if source.live), None)
    if live is not None and len(found) > 1:
        raise InputError(f"{live.title} is live, so nothing else can run beside it; give each camera and stream a command")
    return found


def _expanded(text: str) -> Iterable[str]:
    if glob.has_magic(text) and "://" not in text and not os.path.lexists(text):  # an address may have a question mark
        return [os.fspath(path) for path in expand_glob(text)]
    return [text]


def _is_video(text: str) -> bool:
    if text.lower().startswith(_SCHEMES) or _is_camera(text):
        return True
    return "://" not in text and Path(text).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(text)


def _is_camera(text: str) -> bool:
    return _CAMERA.fullmatch(text) is not None and not os.path.lexists(text)


def _name_of_stream(address: str) -> str:
    try:
        host = urlsplit(address).hostname
    except ValueError as error:
        raise InputError(f"{without_password(address)} is no address: {error}; expected rtsp://HOST/PATH") from None
    if not host:
        raise InputError(f"{without_password(address)} names no machine; expected rtsp://HOST/PATH")
    return name_of_address(without_password(address))
