"""Files of several pictures: the pages of a TIFF, the frames of an animation."""

from __future__ import annotations

import contextlib
import io
import os
from typing import BinaryIO, Union

from PIL import Image

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.limits import current, require_at_most
from detr_export.runtimes.processing.completeness import count_gif_frames
from detr_export.runtimes.processing.images import file_to_rgb, opened_image, turn_to_page

# Of other formats, what Pillow counts as frames are layers, sizes of one icon, or the depth map of a photograph.
_PAGED = ("AVIF", "FLI", "GIF", "PNG", "TIFF", "WEBP")

ImageFile = Union[str, os.PathLike, bytes]


def load_page(file: ImageFile, name: str, page: int = 1, allow_truncated: bool = False) -> tuple[Image.Image, bool]:
    """One picture of a file, and whether the file has several.

    Args:
        file: a path, or the content of a file.
        name: what messages call content.
        page: which one, from 1.
        allow_truncated: as in `load_image`.

    Returns:
        The picture as `load_image` gives it.

    Raises:
        ImageError: as in `load_image`, and there is no such page.
    """
    with opened_image(_stream(file, name), name) as image:
        turn_to_page(image, page, name)
        picture = file_to_rgb(image, name, allow_truncated)
        return picture, _has_several(image)


def count_pages(file: ImageFile, name: str) -> int:
    """How many pictures a file has. One that cannot be read has one: reading it says what is wrong.

    Raises:
        ImageError: it has more pages than the limit allows.
    """
    try:
        with opened_image(_stream(file, name), name) as image:
            pages = _pages_of_tiff(image) if image.format == "TIFF" else _frames(image)
    except Exception:  # a damaged page raises anything; those before it are not known then
        return 1
    require_at_most("pages", pages, f"the number of pages of {name}", ImageError)
    return pages


def _frames(image: Image.Image) -> int:
    """Frames of an animation: of a GIF the parts of the file are counted, of others the header or the library says it."""
    if image.format == "GIF":
        return count_gif_frames(image)
    return int(getattr(image, "n_frames", 1)) if image.format in _PAGED else 1


def _pages_of_tiff(image: Image.Image) -> int:
    """The number of pages, or one more than the limit. Pillow's own count takes time with the square of their number."""
    pages = 1
    with contextlib.suppress(EOFError):
        while pages <= current().pages:
            image.seek(pages)
            pages += 1
    return pages


def _stream(file: ImageFile, name: str) -> Union[str, os.PathLike, BinaryIO]:
    if not isinstance(file, bytes):
        return file
    if not file:
        raise ImageError(f"{name} is empty (0 bytes): expected the content of an image file; check where it comes from")
    return io.BytesIO(file)


def _has_several(image: Image.Image) -> bool:
    """The same without a count, for which an animation would be read to its end."""
    try:
        if image.format == "TIFF":
            return _has_second_page(image)
        return image.format in _PAGED and bool(getattr(image, "is_animated", False))
    except Exception:  # the next page is damaged
        return True


def _has_second_page(image: Image.Image) -> bool:
    try:
        image.seek(0 if image.tell() else 1)
    except EOFError:
        return False
    return True
