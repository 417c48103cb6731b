"""Divides a stream of pictures into batches by their sizes, so that little of a batch is padding."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Generic, Optional, TypeVar, Union

from PIL import Image

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.processing.frames import array_over, is_file_content
from detr_export.runtimes.processing.images import ImageSource, read_image_size, upright_size

Item = TypeVar("Item")
Size = tuple[int, int]  # (height, width), pixels

AHEAD = 8  # for how many batches the stream is read ahead of the oldest item that waits


@dataclass
class _Group(Generic[Item]):
    """Items that will share a batch, and wait for more."""

    first: int  # how many items of the stream came before the oldest one
    height: int = 0  # of the padded batch
    width: int = 0
    pixels: int = 0  # of the images, without padding
    items: list[Item] = field(default_factory=list)

    def padding_with(self, size: Size) -> float:
        """The share of padding in the batch's pixels if an image of this size joined it."""
        height, width = max(self.height, size[0]), max(self.width, size[1])
        return 1 - (self.pixels + size[0] * size[1]) / ((len(self.items) + 1) * height * width)

    def add(self, item: Item, size: Size) -> None:
        self.height, self.width = max(self.height, size[0]), max(self.width, size[1])
        self.pixels += size[0] * size[1]
        self.items.append(item)


def group_by_size(
    items: Iterable[tuple[Item, Optional[Size]]], batch: int, max_padding: float = 0.0
) -> Iterator[list[Item]]:
    """Divides a stream into batches. It is read as batches are taken, so it may be endless.

    An item joins the waiting batch that has the least padding with it. A batch is given when it is full. It is also given,
    full or not, when its oldest item has waited while `AHEAD` times `batch` others came, and at the end of the stream.

    Args:
        items: each item and the (height, width) that its image has in a batch, before padding; None for an item that must be
            alone.
        batch: most items of a batch.
        max_padding: the largest share of a batch's pixels that may be padding, from 0 to 1 without 1. With 0 all images of
            a batch have exactly one size.

    Yields:
        The items of one batch, in the order of the stream.

    Raises:
        InputError: `batch` is below 1, or `max_padding` is out of its range.
    """
    require_grouping(batch, max_padding)
    return _grouped(items, batch, max_padding)


def require_grouping(batch: int, max_padding: float) -> None:
    """Refuses arguments that `group_by_size` does not take. Raises InputError."""
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1")
    if not 0 <= max_padding < 1:
        raise InputError(f"max_padding is {max_padding}; expected a share of the pixels, from 0 to below 1")


def _grouped(items: Iterable[tuple[Item, Optional[Size]]], batch: int, max_padding: float) -> Iterator[list[Item]]:
    waiting: list[_Group[Item]] = []  # the oldest first
    for number, (item, size) in enumerate(items):
        if size is None or batch == 1:
            yield [item]
        else:
            fitting = [group for group in waiting if group.padding_with(size) <= max_padding]
            group = min(fitting, key=lambda found: found.padding_with(size), default=None)
            if group is None:
                group = _Group(number)
                waiting.append(group)
            group.add(item, size)
            if len(group.items) == batch:
                waiting.remove(group)
                yield group.items
        while waiting and number - waiting[0].first >= AHEAD * batch:
            yield waiting.pop(0).items
    for group in waiting:
        yield group.items


def size_of_file(file: Union[str, os.PathLike, BinaryIO], page: int = 1) -> Optional[Size]:
    """`read_image_size` for files that may be no images: (height, width), from the header alone.

    Returns:
        None if there is no such image; `load_image` then says why. A header may also be wrong, so batches are checked
        again when the pixels are there.
    """
    try:
        return read_image_size(file, page)
    except ImageError:
        return None


def size_of_image(source: ImageSource) -> Optional[Size]:
    """The same of anything that `load_image` reads, and None for anything else."""
    if isinstance(source, Image.Image):
        return upright_size(source)
    if isinstance(source, (str, os.PathLike)):
        return size_of_file(source)
    try:
        array = array_over(source)
    except ImageError:
        return None
    if array is None:
        return None
    if is_file_content(array):
        return size_of_file(io.BytesIO(array.tobytes()))
    return (array.shape[0], array.shape[1]) if array.ndim == 3 else None
