"""Opens an image from anywhere. The result is always an upright, fully decoded, 8-bit RGB `PIL.Image.Image`.

For ordinary photographs the pixels are those of transformers 4.57.6 `load_image` (EXIF orientation applied, then
`convert("RGB")`). What differs, on purpose:

- 16-bit greyscale is scaled to 8 bit; `convert("RGB")` alone clamps it, which turns most of the picture white.
- Damaged EXIF is ignored, because the pixels may be fine.
- Images above the limit `pixels` (see `limits`) are refused before they are decoded. Pillow alone only warns.
- PNG, GIF and JPEG 2000 files that were cut short are refused, see `completeness`. Pillow alone fills them up with black.
- Files that Pillow reads with the help of another program (EPS: Ghostscript) are refused.
- `info` of the result is empty, so an orientation that was applied cannot be applied again.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO, Optional, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.limits import Limits, current
from detr_export.runtimes.processing.completeness import what_is_missing
from detr_export.runtimes.processing.frames import (
    ArrayInterface,
    Color,
    DLPack,
    array_over,
    frame_to_image,
    is_file_content,
    require_color,
    require_frame,
)
from detr_export.runtimes.processing.image_paths import PathPattern, missing, read_formats
from detr_export.runtimes.processing.pillow_noise import silence_pillow, without_libtiff_lines

ImageSource = Union[str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, ArrayInterface, DLPack]

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH = 0x0100
_PILLOWS_LIMIT = 2**30 // 4 // 3  # what Image.MAX_IMAGE_PIXELS is, if nobody changed it
_WEBP_HEADER = 30  # bytes, up to the size of the canvas
# EXIF orientation -> the operation that turns the stored pixels upright; 1 is upright already (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # of these, the ones that exchange width and height

silence_pillow()


def load_image(source: ImageSource, allow_truncated: bool = False) -> Image.Image:
    """Reads `source` into an upright RGB image that shares no memory with it.

    `source` is one of these:

    - a path,
    - the content of an image file: bytes, or anything else that holds bytes in one dimension, such as a bytearray, a
      memoryview or a uint8 array (N,),
    - a PIL image of any mode but F,
    - uint8 pixels (H, W, 3) in RGB order and any memory layout: a numpy array, or an object that shows its memory in host
      memory by the buffer protocol, `__array_interface__` or DLPack. They are copied once.

    An animation or a multi-page file gives its first frame. An alpha channel is dropped, not blended, so the hidden colours
    of transparent pixels show. The size limit applies to files and their content only, because a PIL image or an array is
    in the caller's memory already.

    With `allow_truncated`, a file that was cut short is taken as far as Pillow reads it: of a PNG, the rows that are missing
    are black. Else it is refused.

    Raises ImageError with one line for anything that is not such an image.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, _described(source))
    if isinstance(source, (str, os.PathLike)):
        with opened_image(source) as image:
            return file_to_rgb(image, name_of(source), allow_truncated)
    array = array_over(source)
    if array is None:
        raise ImageError(
            f"cannot read an image from {type(source).__name__}: expected a path, bytes, a PIL image or a uint8 array "
            "of shape (H, W, 3); convert it to one of these"
        )
    if is_file_content(array):
        return _from_content(array, source, allow_truncated)
    return frame_to_image(require_frame(array))


def read_image_size(file: Union[PathPattern, BinaryIO], page: int = 1) -> tuple[int, int]:
    """(height, width) of what `load_image` makes of a file. Only its header is read, so damaged pixels are not noticed.

    Args:
        file: a path, or the open file.
        page: of a file of several pages or frames, from 1.

    Raises:
        ImageError: as `load_image`, and there is no such page.
    """
    with opened_image(file) as image:
        turn_to_page(image, page, name_of(file))
        _require_known_pixels(image, name_of(file))
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of a PIL image once it stands upright. Its pixels are not decoded."""
    width, height = image.size
    turned = _orientation(image, header_only=True) in _SIDEWAYS
    if turned and image.format == "TIFF":  # newer versions of Pillow give the upright size
        turned = Image.Image.getexif(image).get(_TIFF_WIDTH) == width
    return (width, height) if turned else (height, width)


def borrow_image(source: ImageSource) -> Image.Image:
    """`load_image` for a caller that only reads. A PIL image that is upright RGB already is returned as it is, not copied.

    Raises ImageError as `load_image` does.
    """
    if isinstance(source, Image.Image) and source.mode == "RGB" and 0 not in source.size:
        decode_in_place(source, _described(source))
        if _orientation(source) not in _UPRIGHT:
            return source
    return load_image(source)


def borrow_pixels(source: ImageSource, color: Color = "rgb") -> Union[Image.Image, np.ndarray]:
    """`borrow_image` for an image processor, which takes the caller's pixels where they lie.

    Args:
        source: as in `load_image`.
        color: the order of the channels of an array. A file or a PIL image knows its own.

    Returns:
        An upright RGB PIL image, or for pixels in memory uint8 (H, W, 3) in RGB order. That array is a view of the caller's
        memory, with any strides.

    Raises:
        ImageError: as `load_image`.
        InputError: `color` is unknown, or "bgr" and the source is not an array of pixels.
    """
    require_color(color)
    array = None if isinstance(source, (str, os.PathLike, Image.Image)) else array_over(source)
    if array is not None and not is_file_content(array):
        frame = require_frame(array)
        return frame if color == "rgb" else frame[..., ::-1]
    if color != "rgb":
        raise InputError(
            f"color is {color!r} and an image is a {type(source).__name__}, whose colours are known; expected an array of "
            "shape (H, W, 3); leave color out for files and PIL images"
        )
    return borrow_image(source)


def decode_in_place(image: Image.Image, name: str) -> None:
    """Decodes the pixels of a lazily opened PIL image. Raises ImageError if its file is damaged or closed."""
    by_libtiff = image.format == "TIFF" and any(tile[0] == "libtiff" for tile in getattr(image, "tile", ()))
    try:
        with without_libtiff_lines() if by_libtiff else nullcontext():
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, _told_size(error)) from error
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise _damaged(name, error) from error


def decode_complete(image: Image.Image, name: str) -> None:
    """`decode_in_place` for an open file, which must not have been cut short. Raises ImageError."""
    stream = getattr(image, "fp", None)
    decode_in_place(image, name)
    lacking = None if stream is None else what_is_missing(image, stream)
    if lacking is not None:
        raise ImageError(
            f"{name} is damaged or truncated: it lacks {lacking}; copy or download it again, or take what is there with "
            "--allow-truncated (allow_truncated=True)"
        )


def name_of(file: Union[PathPattern, BinaryIO]) -> str:
    """What messages call a file."""
    return os.fsdecode(file) if isinstance(file, (str, os.PathLike)) else "the content of a file"


@contextmanager
def opened_image(file: Union[PathPattern, BinaryIO], name: Optional[str] = None) -> Iterator[Image.Image]:
    """An image file before its pixels are decoded.

    Args:
        file: a path, or the open file.
        name: what messages call an open file.

    Raises:
        ImageError: it is no image file, or has too many pixels.
    """
    if isinstance(file, (str, os.PathLike)):
        path = os.fsdecode(file)
        with _opened_file(path) as stream, _opened_image(stream, path) as image:
            yield image
    else:
        with _opened_image(file, name or name_of(file)) as image:
            yield image


def turn_to_page(image: Image.Image, page: int, name: str) -> None:
    """Goes to a page of an open file, from 1. Raises ImageError if it is not there."""
    if page == 1:
        return
    try:
        image.seek(page - 1)
    except Exception as error:  # EOFError, and all kinds for damaged files
        raise ImageError(f"{name} has no page {page} that can be read ({error}); copy or download it again") from error
    _require_pixel_limit(image, name)


@contextmanager
def _opened_file(path: str) -> Iterator[BinaryIO]:
    if os.path.isdir(path):
        raise ImageError(f"{path} is a directory: expected an image file; name a file inside it")
    if not os.path.exists(path):
        raise missing(path)
    if not os.path.isfile(path):
        raise ImageError(f"{path} is not a regular file: expected an image file; save the image to a file first")
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ImageError(f"{path} is empty (0 bytes): expected an image file; copy or download it again")
            yield stream
    except OSError as error:
        raise ImageError(f"cannot open {path}: {error.strerror}; check its permissions") from error


def _from_content(content: np.ndarray, source: object, allow_truncated: bool) -> Image.Image:
    """Decodes the content of a file. Only the messages need `source`."""
    if not content.size:
        raise ImageError("the image bytes are empty: expected the content of an image file; check where they come from")
    raw = "convert it first; if these are pixels, give them their shape, as memoryview(it).cast('B', (H, W, 3)) does"
    stream = io.BytesIO(source if isinstance(source, bytes) else content.tobytes())  # which does not copy bytes
    name = f"{type(source).__name__} object of length {content.size}"
    with _opened_image(stream, name, raw) as image:
        return file_to_rgb(image, name, allow_truncated)


@contextmanager
def _opened_image(stream: BinaryIO, name: str, remedy: str = "convert it first") -> Iterator[Image.Image]:
    """An image file before its pixels are decoded."""
    _let_pillow_read(stream, name)
    try:
        image = Image.open(stream, formats=read_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, _told_size(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that Pillow reads: expected JPEG, PNG, BMP, WebP, TIFF or GIF; {remedy}"
        ) from error
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise _damaged(name, error) from error
    with image:
        _require_pixel_limit(image, name)
        yield image


def _let_pillow_read(stream: BinaryIO, name: str) -> None:
    """What Pillow needs before it opens a file: its own limit, and a look at a WebP, for which it takes memory first."""
    if current().pixels > Limits.pixels and Image.MAX_IMAGE_PIXELS is not None:
        # The user raised our limit, and Pillow refuses above twice its own, which has no other switch than this.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, current().pixels)
    start = stream.read(_WEBP_HEADER)
    stream.seek(0)
    if start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X":
        width, height = (1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
        _require_at_most_pixels(width, height, name)


def _require_pixel_limit(image: Image.Image, name: str) -> None:
    _require_at_most_pixels(*image.size, name)


def _require_at_most_pixels(width: int, height: int, name: str) -> None:
    limit = _most_pixels()
    if width * height > limit:
        raise _too_large(name, f"{width}x{height} pixels exceed the limit of {limit}")


def _most_pixels() -> int:
    """Our limit; or Pillow's, if the application lowered that one. Pillow itself refuses from twice its limit on."""
    ours, pillows = current().pixels, Image.MAX_IMAGE_PIXELS
    return ours if pillows is None or pillows >= _PILLOWS_LIMIT else min(ours, pillows)


def _require_known_pixels(image: Image.Image, name: str) -> None:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: expected a width and height of at least 1; pass a real image")
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels (mode F): expected 8 or 16 bit; convert it to 8 bit first")


def file_to_rgb(image: Image.Image, name: str, allow_truncated: bool) -> Image.Image:
    """The pixels of an open file, as `load_image` gives them. Raises ImageError, which calls the file `name`."""
    _require_known_pixels(image, name)
    if allow_truncated:
        decode_in_place(image, name)
    else:
        decode_complete(image, name)
    _require_pixel_limit(image, name)  # once more: the size of an icon is known when it is decoded
    return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    _require_known_pixels(image, name)
    decode_in_place(image, name)
    if image.mode == "I" or image.mode.startswith("I;16"):
        rgb = _grey16_to_rgb(image, name)
    else:
        plain = image if image.mode == "RGB" else image.copy()
        if plain is not image:
            plain.info.pop("transparency", None)  # RGB does not use it, and Pillow warns if it is a table of bytes
        try:
            rgb = plain.convert("RGB")
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{name} has mode {image.mode}, which Pillow cannot convert to RGB; convert it to RGB first"
            ) from error
    method = _UPRIGHT.get(_orientation(image))
    if method is not None:
        rgb = rgb.transpose(method)
    rgb.info.clear()
    return rgb


def _described(image: Image.Image) -> str:
    """What messages call a PIL image."""
    return f"PIL image of mode {image.mode} and size {image.width}x{image.height}"


def _orientation(image: Image.Image, header_only: bool = False) -> int:
    try:
        # A PNG's own getexif decodes the pixels first, because EXIF may also stand after them.
        exif = Image.Image.getexif(image) if header_only else image.getexif()
        return int(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF: the pixels are still good
        return 1


def _grey16_to_rgb(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} has integer pixels from {low} to {high}: expected 16-bit greyscale, 0 to 65535; scale it to 8 bit first"
        )
    scaled = (values + 128) // 257  # rounds v / 257, which maps 65535 to 255
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _damaged(name: str, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{name} is damaged or truncated ({reason}): expected a complete image; copy or download it again")


def _told_size(error: Exception) -> str:
    """The number of pixels that Pillow's error has; the limit in it may be twice Pillow's own."""
    found = re.search(r"\d+ pixels", str(error))
    return found[0] if found else "Pillow takes it for a decompression bomb"


def _too_large(name: str, reason: str) -> ImageError:
    return ImageError(
        f"{name} is too large ({reason}): expected at most {_most_pixels()} pixels; "
        "shrink it, or add --limit pixels=N if you trust the file"
    )
