"""Opens an image from anywhere. The result is always an upright, fully decoded, 8-bit RGB `PIL.Image.Image`.

For ordinary photographs the pixels are those of transformers 4.57.6 `load_image` (EXIF orientation applied, then
`convert("RGB")`). What differs, on purpose:

- 16-bit greyscale is scaled to 8 bit; `convert("RGB")` alone clamps it, which turns most of the picture white.
- Damaged EXIF is ignored, because the pixels may be fine.
- Images above `PIL.Image.MAX_IMAGE_PIXELS` are refused before they are decoded. Pillow alone only warns.
- `info` of the result is empty, so an orientation that was applied cannot be applied again.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_export.runtimes.errors import ImageError, InputError
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

ImageSource = Union[str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, ArrayInterface, DLPack]
PathPattern = Union[str, os.PathLike]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_EXIF_ORIENTATION = 0x0112
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


def load_image(source: ImageSource) -> Image.Image:
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

    Raises ImageError with one line for anything that is not such an image.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, _described(source))
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fsdecode(source))
    array = array_over(source)
    if array is None:
        raise ImageError(
            f"cannot read an image from {type(source).__name__}: expected a path, bytes, a PIL image or a uint8 array "
            "of shape (H, W, 3); convert it to one of these"
        )
    return _from_content(array, source) if is_file_content(array) else frame_to_image(require_frame(array))


def read_image_size(path: PathPattern) -> tuple[int, int]:
    """(height, width) of what `load_image` makes of a file. Only its header is read, so damaged pixels are not noticed;
    a TIFF is decoded.

    Raises ImageError as `load_image` does.
    """
    name = os.fsdecode(path)
    with _opened_file(name) as stream, _opened_image(stream, name) as image:
        _require_known_pixels(image, name)
        if image.format == "TIFF":  # some versions of Pillow have turned its size already
            image = _upright_rgb(image, name)
            return image.height, image.width
        turned = _orientation(image, header_only=True) in _SIDEWAYS
        return (image.width, image.height) if turned else (image.height, image.width)


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


def iter_image_paths(patterns: Union[PathPattern, Iterable[PathPattern]]) -> list[Path]:
    """Expands files, folders and globs into paths, in the given order and each path once.

    A folder stands for the files directly inside it that have one of `IMAGE_SUFFIXES` and are not hidden. A glob stands
    for every file that it matches; `**` descends into folders. Both are sorted by name. An existing file is taken as it
    is, even if its name contains `*` or `[`. Two paths are the same if they are equal as absolute paths; symbolic links
    are not resolved.

    Raises ImageError for a path that does not exist, and for a folder or glob without images.
    """
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    unique: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(os.fsdecode(pattern)):
            unique.setdefault(os.path.abspath(path), path)
    if not unique:
        raise ImageError("no images were named: expected at least one file, folder or glob; add one")
    return list(unique.values())


def decode_in_place(image: Image.Image, name: str) -> None:
    """Decodes the pixels of a lazily opened PIL image. Raises ImageError if its file is damaged or closed."""
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise _damaged(name, error) from error


def _expand(pattern: str) -> list[Path]:
    if os.path.isfile(pattern):
        return [Path(pattern)]
    if os.path.isdir(pattern):
        try:
            names = sorted(os.listdir(pattern))
        except OSError as error:
            raise ImageError(f"cannot list folder {pattern}: {error.strerror}; check its permissions") from error
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        found = [Path(pattern, name) for name in images if os.path.isfile(os.path.join(pattern, name))]
        if not found:
            raise ImageError(
                f"folder {pattern} contains no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}; "
                "name another folder, or use a glob to take files with other names"
            )
        return found
    if glob.has_magic(pattern):
        found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(match)]
        if not found:
            raise ImageError(f"glob {_short(pattern)} matches no file: expected at least one image; check the pattern")
        return found
    raise _missing(pattern)


def _from_file(path: str) -> Image.Image:
    with _opened_file(path) as stream:
        return _decode(stream, path)


@contextmanager
def _opened_file(path: str) -> Iterator[BinaryIO]:
    if os.path.isdir(path):
        raise ImageError(f"{path} is a directory: expected an image file; name a file inside it")
    if not os.path.exists(path):
        raise _missing(path)
    if not os.path.isfile(path):
        raise ImageError(f"{path} is not a regular file: expected an image file; save the image to a file first")
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ImageError(f"{path} is empty (0 bytes): expected an image file; copy or download it again")
            yield stream
    except OSError as error:
        raise ImageError(f"cannot open {path}: {error.strerror}; check its permissions") from error


def _from_content(content: np.ndarray, source: object) -> Image.Image:
    """Decodes the content of a file. Only the messages need `source`."""
    if not content.size:
        raise ImageError("the image bytes are empty: expected the content of an image file; check where they come from")
    raw = "convert it first; if these are pixels, give them their shape, as memoryview(it).cast('B', (H, W, 3)) does"
    stream = io.BytesIO(source if isinstance(source, bytes) else content.tobytes())  # which does not copy bytes
    return _decode(stream, f"{type(source).__name__} object of length {content.size}", raw)


def _decode(stream: BinaryIO, name: str, remedy: str = "convert it first") -> Image.Image:
    with _opened_image(stream, name, remedy) as image:
        return _upright_rgb(image, name)


@contextmanager
def _opened_image(stream: BinaryIO, name: str, remedy: str = "convert it first") -> Iterator[Image.Image]:
    """An image file before its pixels are decoded. Pillow may warn about a large image before it is refused here."""
    try:
        image = Image.open(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that Pillow reads: expected JPEG, PNG, BMP, WebP, TIFF or GIF; {remedy}"
        ) from error
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise _damaged(name, error) from error
    with image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise _too_large(name, f"{image.width}x{image.height} pixels exceed the limit of {limit}")
        yield image


def _require_known_pixels(image: Image.Image, name: str) -> None:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: expected a width and height of at least 1; pass a real image")
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels (mode F): expected 8 or 16 bit; convert it to 8 bit first")


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


def _missing(path: str) -> ImageError:
    if path.startswith(("http://", "https://")):
        return ImageError(f"{_short(path)} is a URL: expected a local file; download it and pass the file or its bytes")
    return ImageError(f"{_short(path)} does not exist: expected an image file; check the path")


def _damaged(name: str, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{name} is damaged or truncated ({reason}): expected a complete image; copy or download it again")


def _too_large(name: str, reason: str) -> ImageError:
    return ImageError(
        f"{name} is too large ({reason}): expected at most PIL.Image.MAX_IMAGE_PIXELS; "
        "shrink it, or raise that limit if you trust the file"
    )


def _short(text: str) -> str:
    """The start of a long string. What should be a path may be a whole base64 image."""
    return text if len(text) <= 200 else f"{text[:197]}..."
