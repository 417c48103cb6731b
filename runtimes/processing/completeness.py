"""Finds out whether an image file ends where it should. Pillow makes an image of some files that were cut, and tells nobody.

What Pillow passes over: a PNG without its end, with pixels that do not match their checksum, or with fewer rows than its
header says; a GIF without its end; a JPEG 2000 whose last code block is cut. Other formats raise an error by themselves, or
end with something that has no pixels, like the footer of a TGA.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Optional

from PIL import Image

_CHUNK = 1 << 20
_PNG_SIGNATURE = 8  # bytes
_PIXELS = (b"IDAT", b"fdAT")
_FRAME, _TRAILER = b",", b";"  # of a GIF
_END_OF_CODESTREAM = b"\xff\xd9"


def what_is_missing(image: Image.Image, stream: BinaryIO) -> Optional[str]:
    """What a file lacks, in words for a message; None if nothing is known to be missing.

    Args:
        image: decoded from the file.
        stream: the open file. Where it stands is not changed.
    """
    check = _CHECKS.get(image.format or "")
    if check is None:
        return None
    place = stream.tell()
    try:
        stream.seek(0)
        lacking = check(stream)
        return "rows of its pixels" if lacking is None and _may_lack_rows(image) and _lacks_rows(stream) else lacking
    except (struct.error, IndexError):  # fewer bytes than a header has
        return "its end"
    finally:
        stream.seek(place)


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether a PNG looks as if its rows had ended early: the last one has nothing but zeros.

    It is asked before `_lacks_rows`, which takes as long as a third of decoding.
    """
    if image.format != "PNG" or not image.height:
        return False
    last = image.crop((0, image.height - 1, image.width, image.height))
    return last.getbbox(alpha_only=False) is None


def _lacks_rows(stream: BinaryIO) -> bool:
    """Whether the compressed pixels of a PNG are fewer than its header says. Only rows that are not interlaced can be."""
    stream.seek(_PNG_SIGNATURE + 8)
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", stream.read(13))
    if interlaced:  # Pillow itself refuses these
        return False
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
    wanted = height * (1 + (width * depth * samples + 7) // 8)
    found, inflate = 0, zlib.decompressobj()
    stream.seek(_PNG_SIGNATURE)
    while found < wanted and not inflate.eof:
        length, kind = struct.unpack(">I4s", stream.read(8))
        if kind == b"IEND":
            break
        after = stream.tell() + length + 4
        while kind == b"IDAT" and length and found < wanted:
            data = stream.read(min(length, _CHUNK))
            length -= len(data)
            while data and found < wanted:  # in pieces: what a few bytes unpack to may be large
                found += len(inflate.decompress(data, _CHUNK))
                data = inflate.unconsumed_tail
        stream.seek(after)
    return found < wanted


def _png(stream: BinaryIO) -> Optional[str]:
    stream.seek(_PNG_SIGNATURE)
    while True:
        header = stream.read(8)
        length, kind = struct.unpack(">I4s", header) if len(header) == 8 else (0, b"IEND")
        if kind == b"IEND":
            return None if len(stream.read(4)) == 4 else "the end of the PNG (IEND)"
        if kind not in _PIXELS:
            stream.seek(length + 4, 1)
            continue
        checksum = zlib.crc32(kind)
        while length:
            data = stream.read(min(length, _CHUNK))
            if not data:
                return "the end of its pixels"
            checksum, length = zlib.crc32(data, checksum), length - len(data)
        if stream.read(4) != struct.pack(">I", checksum):
            return "pixels that match their checksum"


def count_gif_frames(image: Image.Image) -> int:
    """The number of frames of an open GIF, without decoding them; those behind a cut are not counted."""
    stream: BinaryIO = image.fp  # type: ignore[attr-defined]
    place = stream.tell()
    try:
        stream.seek(0)
        return max(1, sum(part == _FRAME for part in _gif_parts(stream)))
    finally:
        stream.seek(place)


def _gif(stream: BinaryIO) -> Optional[str]:
    return None if _TRAILER in _gif_parts(stream) else "the end of the GIF"


def _gif_parts(stream: BinaryIO) -> Iterator[bytes]:
    """The kinds of the parts of a GIF, each once it is known to be complete; the trailer is the last one."""
    header = stream.read(13)
    stream.seek(_color_table(header[10]), 1)
    while kind := stream.read(1):
        if kind == _TRAILER:
            yield kind
            return
        if kind == _FRAME:
            stream.seek(_color_table(stream.read(9)[8]) + 1, 1)
        elif kind == b"!":
            stream.seek(1, 1)
        else:  # Pillow goes on behind bytes that mean nothing
            continue
        while (size := stream.read(1)) != b"\0":
            if not size:
                return
            stream.seek(size[0], 1)
        yield kind


def _color_table(flags: int) -> int:
    """Bytes of the table of colours that comes next."""
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _jpeg2000(stream: BinaryIO) -> Optional[str]:
    if stream.read(4) == b"\xff\x4f\xff\x51":  # a bare codestream
        return _codestream(stream, None)
    stream.seek(0)
    while True:
        header = stream.read(8)
        length, kind = struct.unpack(">I4s", header)
        size = 8
        if length == 1:
            length, size = struct.unpack(">Q", stream.read(8))[0], 16
        if kind == b"jp2c":
            return _codestream(stream, None if length == 0 else length - size)
        if length < size:
            return "its pixels"
        stream.seek(length - size, 1)


def _codestream(stream: BinaryIO, length: Optional[int]) -> Optional[str]:
    """A codestream that goes to the end of the file when `length` is None."""
    start = stream.tell()
    end = stream.seek(0, 2)
    if length is not None and start + length > end:
        return "the end of its pixels"
    stream.seek((end if length is None else start + length) - 2)
    return None if stream.read(2) == _END_OF_CODESTREAM else "the end of its pixels"


_CHECKS: dict[str, Callable[[BinaryIO], Optional[str]]] = {
    "PNG": _png,
    "GIF": _gif,
    "JPEG2000": _jpeg2000,
}
