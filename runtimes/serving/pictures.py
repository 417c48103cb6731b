"""Reads a picture from a stranger: few formats, and no more pixels than allowed. Both are checked before it is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.serving.refusals import TOO_LARGE, Refusal

# Pillow knows more, but some of them start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def _anyone(size: tuple[int, int]) -> None:
    pass


def decode_picture(data: bytes, max_pixels: int, admit: Callable[[tuple[int, int]], None] = _anyone) -> Image.Image:
    """The upright RGB picture of an image file, as `load_image` makes it.

    Args:
        data: the whole file.
        max_pixels: width times height of the largest picture that is decoded.
        admit: is called with (height, width) before that, and may refuse.

    Raises:
        Refusal: 413, the picture has more pixels; and as `admit` raises.
        ImageError: the data is empty, damaged, or of another format.
    """
    if not data:
        raise ImageError("the body is empty; expected the bytes of an image file")
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # far above any limit of ours
        raise _too_large(str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"the {len(data)} bytes are not an image; expected the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file"
        ) from error
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"the image is damaged ({reason}); expected a complete file") from error
    with opened:
        if opened.width * opened.height > max_pixels:
            raise _too_large(f"{opened.width}x{opened.height} pixels", max_pixels)
        admit((opened.height, opened.width))
        return load_image(opened)


def _too_large(size: str, max_pixels: int) -> Refusal:
    return Refusal(TOO_LARGE, f"the picture is too large ({size}); expected at most {max_pixels} pixels; shrink it first")
