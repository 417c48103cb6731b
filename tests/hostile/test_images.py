"""Pictures that are cut, lie about their size, or make Pillow talk."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import limits
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing.images import load_image, read_image_size
from detr_export.runtimes.processing.pages import count_pages, load_page
from detr_export.runtimes.processing.pillow_noise import without_libtiff_lines


def noise(width: int = 9, height: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(
    width: int = 8,
    height: int = 8,
    rows: int = 8,
    wrong: int = 0,
    before: bytes = b"",
    after: bytes = b"",
    end: bytes = chunk(b"IEND", b""),
    parts: int = 1,
) -> bytes:
    packed = zlib.compress(b"".join(b"\0" + bytes([200] * 3 * min(width, 1000)) for _ in range(rows)))
    step = -(-len(packed) // parts)
    pixels = b"".join(chunk(b"IDAT", packed[at : at + step], wrong) for at in range(0, len(packed), step))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + end


# Bytes at the end without which nothing is lost: padding of a BMP, the footer of a TGA.
CUTS: list[tuple[str, dict[str, Any], int]] = [
    ("PNG", {}, 0),
    ("PNG", {"optimize": True}, 0),
    ("GIF", {}, 0),
    ("GIF", {"interlace": 0}, 0),
    ("BMP", {}, 1),
    ("TIFF", {}, 0),
    ("TIFF", {"compression": "tiff_lzw"}, 0),
    ("TIFF", {"compression": "tiff_deflate"}, 0),
    ("TIFF", {"compression": "packbits"}, 0),
    ("TIFF", {"compression": "jpeg"}, 0),
    ("WEBP", {}, 0),
    ("WEBP", {"lossless": True}, 0),
    ("JPEG", {}, 0),
    ("JPEG", {"progressive": True}, 0),
    ("JPEG2000", {}, 0),
    ("JPEG2000", {"no_jp2": True}, 0),
    ("PPM", {}, 0),
    ("TGA", {}, 26),
    ("TGA", {"compression": "tga_rle"}, 26),
]


@pytest.mark.parametrize(("form", "options", "spare"), CUTS, ids=[f"{form}-{i}" for i, (form, *_) in enumerate(CUTS)])
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_cut_anywhere_is_refused(
    form: str, options: dict[str, Any], spare: int, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(noise(), form, **options)
    whole = load_image(data).tobytes()
    for length in range(1, len(data)):
        if len(data) - length <= spare:
            assert load_image(data[:length]).tobytes() == whole
            continue
        with pytest.raises(ImageError, match=r"damaged or truncated|is not an image that Pillow reads") as raised:
            load_image(data[:length])
        assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_what_pillow_completes_can_be_taken(form: str) -> None:
    data = encoded(noise(), form)
    whole = load_image(data)
    with pytest.raises(ImageError, match=r"it lacks the end of the (PNG|GIF).*--allow-truncated \(allow_truncated=True\)"):
        load_image(data[:-1] if form == "GIF" else data[:-12])
    assert load_image(data[:-1] if form == "GIF" else data[:-12], allow_truncated=True).tobytes() == whole.tobytes()
    assert load_page(data[:-1] if form == "GIF" else data[:-12], "it", allow_truncated=True)[0].tobytes() == whole.tobytes()


DAMAGED: list[tuple[str, bytes, str, bool]] = [
    # name, content, message, whether --allow-truncated takes it
    ("rows", png(rows=5), "it lacks rows of its pixels", True),
    ("last row", png(rows=7), "it lacks rows of its pixels", True),
    ("checksum", png(wrong=1), "it lacks pixels that match their checksum", True),
    ("checksum of parts", png(wrong=1, parts=3), "it lacks pixels that match their checksum", True),
    ("no end", png(end=b""), r"it lacks the end of the PNG \(IEND\)", True),
    ("half an end", png(end=b"\0\0\0\0IE"), "it lacks the end of the PNG", True),
    ("a long chunk", png(after=struct.pack(">I", 2**31 - 1) + b"teXt"), "damaged or truncated", False),
    ("no rows", png(rows=0), "damaged or truncated", False),
    ("no pixels", png()[:33] + chunk(b"IEND", b""), "damaged or truncated", False),
    ("text bomb", png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))), "damaged or truncated", False),
    ("itxt bomb", png(before=chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(100_000_000)))), "damaged|fine", False),
    ("gif", encoded(noise(), "GIF")[:-1], "it lacks the end of the GIF", True),
]


@pytest.mark.parametrize(("name", "data", "message", "taken"), DAMAGED, ids=[name for name, *_ in DAMAGED])
def test_damage_that_pillow_does_not_tell(name: str, data: bytes, message: str, taken: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(data)
    for source in (data, file):
        if message == "damaged|fine":  # whether the bomb is an error depends on Pillow; memory stays bounded
            continue
        with pytest.raises(ImageError, match=message) as raised:
            load_image(source)
        assert "\n" not in str(raised.value)
    if taken:
        assert load_image(file, allow_truncated=True).size == load_image(data, allow_truncated=True).size


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "I;16", "RGB", "RGBA"])
@pytest.mark.parametrize("height", [1, 2, 7])
def test_black_pictures_are_complete(mode: str, height: int) -> None:
    data = encoded(Image.new(mode, (5, height)), "PNG")
    assert load_image(data).size == (5, height)


def riff(width: int, height: int) -> bytes:
    body = (
        b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\x02\0\0\0"
        + b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


LARGE: list[tuple[str, bytes, str]] = [
    ("PNG", png(100_000, 100_000, 1), "too large .10000000000 pixels"),
    ("PNG just above", png(13_378, 13_378, 1), "too large .178970884 pixels"),
    ("BMP", bmp(100_000, 100_000), "too large .10000000000 pixels"),
    ("WebP", riff(2**14, 2**14), "too large .16384x16384 pixels exceed the limit of 89478485"),
    ("WebP of 2^48", riff(2**24, 2**24), "too large .16777216x16777216 pixels"),
    ("PPM", b"P6\n100000 100000\n255\n", "too large .10000000000 pixels"),
    ("PGM", b"P5\n100000 100000\n255\n", "too large .10000000000 pixels"),
    ("GIF", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(20), "too large .4294836225 pixels"),
    (
        "JPEG 2000",
        encoded(noise(), "JPEG2000", no_jp2=True)[:8]
        + struct.pack(">II", 100_000, 100_000)
        + encoded(noise(), "JPEG2000", no_jp2=True)[16:],
        "too large .10000000000 pixels",
    ),
]


@pytest.mark.parametrize(("name", "data", "message"), LARGE, ids=[name for name, *_ in LARGE])
@pytest.mark.filterwarnings("ignore")
def test_a_size_is_checked_before_memory_is_taken(name: str, data: bytes, message: str) -> None:
    for function in (load_image, lambda content: read_image_size(io.BytesIO(content))):
        with pytest.raises(ImageError, match=message) as raised:
            function(data)
        assert "expected at most 89478485 pixels; shrink it, or add --limit pixels=N" in str(raised.value)


@pytest.mark.parametrize("number", [62, 1])
def test_the_limit_of_pixels_is_ours(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(), "PNG")
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=63))
    assert load_image(data).size == (9, 7)
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=number))
    with pytest.raises(ImageError, match=f"9x7 pixels exceed the limit of {number}"):
        load_image(data)
    assert load_image(noise()).size == (9, 7)  # it is in memory already


def test_a_raised_limit_goes_above_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="too large"):
        load_image(encoded(noise(), "PNG"))
    monkeypatch.setattr(limits, "_current", limits.Limits(pixels=limits.Limits.pixels + 1))
    assert load_image(encoded(noise(), "PNG")).size == (9, 7)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize("start", [EPS, b"\xd7\xcd\xc6\x9a" + bytes(80)])
def test_no_other_program_is_started(start: bytes) -> None:
    with pytest.raises(ImageError, match="is not an image that Pillow reads"):
        load_image(start)


def with_exif(exif: bytes) -> bytes:
    return encoded(noise(), "JPEG", exif=exif)


NOISY: list[tuple[str, bytes]] = [
    ("EXIF", with_exif(b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\xff" * 30)),
    ("EXIF offset", with_exif(b"Exif\0\0II*\0\xff\xff\xff\x7f")),
    ("EXIF loop", with_exif(b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0")),
    ("EXIF text", with_exif(b"Exif\0\0hello")),
    ("transparency", encoded(noise().convert("P"), "PNG", transparency=bytes(range(200)))),
    ("large", png(11_000, 13_000, 1)),
]


@pytest.mark.parametrize(("name", "data"), NOISY, ids=[name for name, _ in NOISY])
def test_pillow_says_nothing(name: str, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what the import of images sets, which pytest undoes
        with contextlib.suppress(ImageError):
            load_image(data)
    assert capfd.readouterr() == ("", "")


def test_only_libtiffs_lines_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with without_libtiff_lines():
        for line in (
            b"JPEGLib: bad.\n",
            b"progress 3\n",
            b"tempfile.tif: Cannot read.\n",
            b"error: ours\n",
            b"TIFFFillStrip: x.\n",
        ):
            os.write(2, line)
    assert capfd.readouterr().err == "progress 3\nerror: ours\n"


def pages(form: str, count: int) -> bytes:
    first, *rest = [Image.new("L", (2, 2), number % 256) for number in range(count)]
    return encoded(first, form, save_all=True, append_images=rest)


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG"])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_pages_are_counted_up_to_a_limit(form: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pages(form, count)
    assert count_pages(data, "it") == count
    assert load_page(data, "it")[1] == (count > 1)
    monkeypatch.setattr(limits, "_current", limits.Limits(pages=11))
    if count > 11:
        with pytest.raises(ImageError, match=r"the number of pages of it is 12; expected at most 11.*--limit pages=N"):
            count_pages(data, "it")


def test_an_animation_that_says_it_has_4_billion_frames() -> None:
    data = png(before=chunk(b"acTL", struct.pack(">II", 2**31 - 2, 0)))
    with pytest.raises(ImageError, match="the number of pages of it is 2147483647; expected at most 10000"):
        count_pages(data, "it")


def test_a_tiff_whose_pages_go_round_ends() -> None:
    data = bytearray(pages("TIFF", 1))
    start = struct.unpack("<I", data[4:8])[0]
    entries = struct.unpack("<H", data[start : start + 2])[0]
    data[start + 2 + 12 * entries : start + 6 + 12 * entries] = data[4:8]
    assert count_pages(bytes(data), "it") == 1
    assert load_image(bytes(data)).size == (2, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for function in (load_image, read_image_size):
        with pytest.raises(ImageError, match=r"a\.png is not a regular file"):
            function(tmp_path / "a.png")
