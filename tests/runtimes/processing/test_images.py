"""Loading: the pixels of transformers' `load_image` where they are right, and one clear line where there are none."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from transformers.image_utils import load_image as oracle_load_image

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing.images import borrow_image, load_image, read_image_size

ORIENTATION = 0x0112


def pixels(height: int = 20, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(**size: int) -> Image.Image:
    return Image.fromarray(pixels(**size))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


# ---- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_files_give_the_pixels_of_the_oracle(format: str, orientation: int | None, tmp_path: Path) -> None:
    options = {"exif": exif(orientation)} if orientation and format in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    file = tmp_path / f"photo.{format.lower()}"
    file.write_bytes(encoded(picture(), format, **options))
    with Image.open(file) as opened:
        expected = oracle_load_image(opened)
    for source in (str(file), file, file.read_bytes()):
        image = load_image(source)
        assert image.mode == "RGB"
        assert image.size == expected.size
        assert image.tobytes() == expected.tobytes()
    assert read_image_size(file) == (expected.height, expected.width)
    turned = options and orientation in (5, 6, 7, 8)
    assert image.size == ((20, 30) if turned else (30, 20))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGB"])
def test_modes_give_the_pixels_of_the_oracle(mode: str) -> None:
    rgba = Image.fromarray(pixels(channels=4))
    source = (
        rgba if mode == "RGBA" else rgba.convert("LA").convert(mode) if mode == "PA" else rgba.convert("RGB").convert(mode)
    )
    kept = source.tobytes()
    assert load_image(source).tobytes() == oracle_load_image(source).tobytes()
    assert source.mode == mode
    assert source.tobytes() == kept


def test_alpha_is_dropped_and_not_blended() -> None:
    rgba = Image.fromarray(np.dstack([pixels(), np.zeros((20, 30), np.uint8)]))
    assert np.array_equal(np.asarray(load_image(rgba)), pixels())


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_transparent_palette_gives_no_warning(transparency: int | bytes) -> None:
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    expected = palette.convert("RGB").tobytes()
    source = Image.open(io.BytesIO(encoded(palette, "PNG", transparency=transparency)))
    source.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(source).tobytes() == expected
        assert load_image(encoded(palette, "PNG", transparency=transparency)).tobytes() == expected
    assert source.info["transparency"] is not None  # the caller's image is as it was


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_sixteen_bit_grey_is_scaled_and_not_clamped(mode: str) -> None:
    values = np.array([[0, 128, 129, 257, 385, 386], [32767, 32768, 65278, 65406, 65407, 65535]])
    raw = values.astype({"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")).tobytes()
    loaded = np.asarray(load_image(Image.frombytes(mode, (6, 2), raw)))
    expected = np.array([round(v / 257) for v in values.ravel().tolist()]).reshape(2, 6)
    assert np.array_equal(loaded, np.repeat(expected[..., None], 3, axis=2))
    assert expected[0].tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bit_files_are_scaled_and_turned(format: str, orientation: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7), dtype=np.uint16)
    source = encoded(Image.frombytes("I;16", (7, 5), values.tobytes()), format, exif=exif(orientation))
    expected = (values / 257).round().astype(np.uint8)
    expected = np.rot90(expected, -1) if orientation == 6 else expected
    assert np.array_equal(np.asarray(load_image(source))[..., 1], expected)


def test_an_orientation_is_applied_once() -> None:
    source = encoded(picture(), "JPEG", exif=exif(6))
    once = load_image(source)
    assert load_image(once).tobytes() == once.tobytes()
    assert load_image(encoded(once, "PNG")).tobytes() == once.tobytes()
    assert once.info == {}


def test_damaged_exif_does_not_cost_the_image() -> None:
    plain = encoded(picture(), "JPEG")
    damaged = encoded(picture(), "JPEG", exif=b"Exif\x00\x00not a tiff header")
    assert load_image(damaged).tobytes() == load_image(plain).tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_size_is_read_without_the_pixels(format: str, tmp_path: Path) -> None:
    file = tmp_path / "cut"
    whole = encoded(picture(height=200, width=300), format, exif=exif(6))
    file.write_bytes(whole[: len(whole) // 2])
    assert read_image_size(file) == (300, 200)
    with pytest.raises(ImageError, match="damaged or truncated"):
        load_image(file)


def test_a_size_is_refused_as_the_image_is(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no picture")
    Image.new("F", (3, 2)).save(tmp_path / "float.tiff")
    for name in ("nothing", "empty", "text", "float.tiff", "."):
        with pytest.raises(ImageError) as expected:
            load_image(tmp_path / name)
        with pytest.raises(ImageError, match=re.escape(str(expected.value))):
            read_image_size(tmp_path / name)


def test_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    source = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert load_image(source).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "array",
    [
        pixels(),
        pixels()[::-1, ::2],
        pixels()[..., ::-1],
        pixels().transpose(1, 0, 2),
        np.asfortranarray(pixels()),
        pixels(3, 3),
        pixels(3, 8),
        pixels(1, 1),
    ],
    ids=lambda array: f"{array.shape}-{array.strides}",
)
def test_arrays_of_any_layout_are_copied(array: np.ndarray) -> None:
    kept = array.copy()
    image = load_image(array)
    array[...] = 0
    assert np.array_equal(np.asarray(image), kept)


def test_an_upright_rgb_image_is_borrowed_and_any_other_is_loaded(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    assert borrow_image(image) is image
    image.save(tmp_path / "a.png")
    lazy = Image.open(tmp_path / "a.png")
    assert borrow_image(lazy) is lazy
    assert lazy.tobytes() == image.tobytes()

    grey = image.convert("L")
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    for source in (grey, turned, np.asarray(image), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert borrow_image(source) is not source
        assert borrow_image(source).tobytes() == load_image(source).tobytes()
    assert borrow_image(turned).size == (2, 3)
    with pytest.raises(ImageError, match="has no pixels"):
        borrow_image(Image.new("RGB", (0, 2)))


def test_a_loaded_image_does_not_share_memory_with_a_pil_source() -> None:
    source = picture()
    image = load_image(source)
    source.paste((0, 0, 0), (0, 0, 30, 20))
    assert np.array_equal(np.asarray(image), pixels())


# ---- what is refused ------------------------------------------------------------------------------------------------


def assert_refused(source: Any, *expected: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert "expected" in message or "convert it" in message
    for part in expected:
        assert part in message, message


def test_files_that_are_no_images(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.jpg", str(tmp_path / "none.jpg"), "does not exist")
    assert_refused(str(tmp_path / "none.jpg"), "does not exist")
    assert_refused(tmp_path, str(tmp_path), "is a directory")
    assert_refused("https://example.com/cat.jpg", "https://example.com/cat.jpg", "download it")
    assert_refused("nul\0byte", "does not exist")
    assert_refused("x" * 100_000, "does not exist")
    for name, content, message in (
        ("empty.jpg", b"", "is empty"),
        ("text.png", b"hello, this is text\n" * 9, "is not an image"),
        ("head.jpg", b"\xff\xd8\xff", "is not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, str(tmp_path / name), message)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert_refused(tmp_path / "pipe.jpg", "is not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "secret.png"
    file.write_bytes(encoded(picture(), "PNG"))
    file.chmod(0)
    assert_refused(file, str(file), "permissions")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("keep", [0.4, 0.8])
def test_truncated_files(format: str, keep: float, tmp_path: Path) -> None:
    content = encoded(picture(height=60, width=70), format)
    file = tmp_path / "cut"
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ImageError) as caught:
        load_image(file)
    assert str(file) in str(caught.value)
    assert re.search("damaged or truncated|is not an image", str(caught.value))
    with pytest.raises(ImageError, match=rf"bytes object of length {int(len(content) * keep)}"):
        load_image(file.read_bytes())


def test_truncation_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.jpg"
    content = encoded(picture(height=60, width=70), "JPEG")
    file.write_bytes(content[: len(content) // 2])
    assert_refused(file, "damaged or truncated", "copy or download it again")
    with Image.open(file) as lazy:
        assert_refused(lazy, "PIL image of mode RGB and size 70x60", "damaged or truncated")


@pytest.mark.parametrize("position", range(0, 300, 7))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF"])
def test_flipped_bytes_never_give_another_error(format: str, position: int) -> None:
    content = bytearray(encoded(picture(), format))
    content[position] ^= 0xFF
    with contextlib.suppress(ImageError):
        assert load_image(bytes(content)).mode == "RGB"


@pytest.mark.parametrize("limit", [599, 400, 299, 10])  # the image has 600: above the limit, and above twice the limit
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_large_images_are_refused_before_they_are_decoded(
    limit: int, action: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(encoded(picture(), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the pixels were decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        assert_refused(file, str(file), "too large", "expected at most", "--limit pixels=N")
        assert_refused(file.read_bytes(), "bytes object", "too large")


@pytest.mark.parametrize("limit", [600, None])
def test_images_within_the_limit_are_read(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert load_image(encoded(picture(), "PNG")).size == (30, 20)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels() / 255, ("float64", "scale it to 0..255")),
        (np.full((4, 5, 3), np.nan, np.float32), ("float32", "containing NaN")),
        (pixels().transpose(2, 0, 1), ("(3, 20, 30)", "transpose(1, 2, 0)")),
        ((pixels() / 255).transpose(2, 0, 1), ("transpose(1, 2, 0)", "scale it to 0..255")),
        (pixels()[..., 0], ("(20, 30)", "repeat the grey channel")),
        (pixels(channels=1), ("(20, 30, 1)", "repeat the grey channel")),
        (pixels(channels=4), ("(20, 30, 4)", "alpha")),
        (pixels().astype(np.uint16), ("uint16", "257")),
        (pixels().astype(np.int64), ("int64", "cast it to uint8")),
        (pixels() > 9, ("bool", "255")),
        (np.zeros((0, 5, 3), np.uint8), ("(0, 5, 3)", "at least one pixel")),
        (np.zeros((5, 0, 3), np.uint8), ("(5, 0, 3)", "at least one pixel")),
        (pixels()[None], ("(1, 20, 30, 3)", "one by one")),
        (np.zeros(7, np.uint16), ("(7,)", "reshape")),
        (np.zeros((), np.uint8), ("()", "reshape")),
        (pixels(channels=2), ("(20, 30, 2)", "three channels")),
        (pixels().astype(object), ("object", "cast")),
    ],
)
def test_arrays_that_are_no_rgb_image(array: np.ndarray, message: tuple[str, ...]) -> None:
    assert_refused(array, "array of shape", "uint8 of shape (H, W, 3)", *message)


def test_the_remedies_for_arrays_work() -> None:
    grey = pixels()[..., 0]
    wide = grey.astype(np.uint16) * 257
    assert np.array_equal(np.asarray(load_image(np.repeat(grey[..., None], 3, axis=2)))[..., 2], grey)
    assert np.array_equal(((wide.astype(np.int64) + 128) // 257).astype(np.uint8), grey)
    assert np.array_equal(np.asarray(load_image(pixels().transpose(2, 0, 1).transpose(1, 2, 0))), pixels())


def test_other_sources_are_refused() -> None:
    assert_refused(None, "NoneType")
    assert_refused(7, "int")
    assert_refused(b"", "empty")
    assert_refused(b"hello", "bytes object of length 5")
    assert_refused(Image.new("F", (2, 2)), "mode F")
    assert_refused(Image.new("RGB", (0, 2)), "no pixels")
    assert_refused(Image.new("La", (2, 2)), "La")
    for value in (-1, 65536):
        assert_refused(Image.new("I", (2, 2), value), "0 to 65535")
    closed = Image.open(io.BytesIO(encoded(picture(), "PNG")))
    closed.close()
    assert_refused(closed, "PIL image")
