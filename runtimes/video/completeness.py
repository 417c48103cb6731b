"""Whether a video file is as long as it says. ffmpeg does not tell where a format keeps no list of its frames in front."""

from __future__ import annotations

import io
import os
from typing import Optional

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the two elements of a Matroska file
_SYNC = 0x47  # the first byte of each packet of a transport stream
_HEAD = 1 << 12  # bytes; more than the first element of a Matroska file has


def what_is_missing(file: io.FileIO) -> Optional[str]:
    """What a Matroska, WebM or AVI file or a transport stream lacks at its end, in words.

    Args:
        file: is read from its beginning, and left there.

    Returns:
        None if nothing is missing, or if the format does not say.
    """
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    if head[:4] == _EBML:
        length = _matroska_length(head)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        length = 8 + int.from_bytes(head[4:8], "little")
    else:
        packet = _packet_length(head)
        return "it ends within a packet" if packet is not None and size % packet else None
    return f"{length - size} of its bytes are missing" if length is not None and length > size else None


def _matroska_length(head: bytes) -> Optional[int]:
    """Of a whole file, bytes. One that was written to a pipe does not say; then it is None."""
    inner, start = _element_size(head, 4)
    if inner is None or head[start + inner : start + inner + 4] != _SEGMENT:
        return None
    content, begin = _element_size(head, start + inner + 4)
    return None if content is None else begin + content


def _element_size(data: bytes, at: int) -> tuple[Optional[int], int]:
    """The size of an element of EBML, None if it is unknown, and where its content begins.

    The number of zeros before the first one says how many bytes the size has. All ones stand for an unknown size.
    """
    first = data[at] if at < len(data) else 0
    count = 9 - first.bit_length()
    if count > 8:
        return None, at + 1
    value = int.from_bytes(data[at : at + count], "big") & ((1 << 7 * count) - 1)
    return (None if value == (1 << 7 * count) - 1 else value), at + count


def _packet_length(head: bytes) -> Optional[int]:
    """Of a transport stream, bytes: 188, or 192 with a time before each packet."""
    for length, offset in ((188, 0), (192, 4)):
        marks = head[offset : offset + 5 * length : length]
        if len(marks) == 5 and set(marks) == {_SYNC}:
            return length
    return None
