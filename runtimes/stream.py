"""A stream of pictures from anywhere: when each is read, in which batches they run, and where an error stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Optional, TypeVar, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.grouping import Size, group_by_size, require_grouping, size_of_image
from detr_export.runtimes.processing.batch import Picture, size_of
from detr_export.runtimes.processing.frames import Color
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.images import ImageSource, borrow_pixels
from detr_export.runtimes.processing.transforms import LAST
from detr_export.runtimes.session import Session, largest_batch, takes_padding
from detr_export.runtimes.tasks import DETECTION, TABLES

Found = TypeVar("Found")
Failure = TypeVar("Failure", bound=Exception)
ModelSize = Callable[[Size], Size]  # `Predictor.model_size`
Taken = Union[str, os.PathLike, bytes, Picture, Exception]  # a file that is still to be read, pixels, or why there are none


def require_batches(session: Session, processor: DetrImageProcessor, task: str, batch: int, max_padding: float) -> None:
    """Refuses batches that a task or a model does not have.

    Raises:
        InputError: says which limit there is.
    """
    require_grouping(batch, max_padding)
    largest = largest_batch(session)
    if largest is not None and batch > largest:
        raise InputError(f"batch is {batch}, but the model takes {largest} at most; give a smaller one (--batch)")
    if not max_padding:
        return
    remedy = "leave max_padding (--max-padding) out"
    if batch == 1:
        raise InputError("max_padding is for batches, and batch (--batch) is 1; give a larger one")
    if task not in (DETECTION, TABLES):
        raise InputError(f"images are not padded for the task {task}, because its maps would cover the padding; {remedy}")
    if not takes_padding(session.inputs) or not processor.do_pad:
        raise InputError(f"the model takes no padded images: it has no pixel mask, or its processor does not pad; {remedy}")
    if processor.pad_size is not None:
        raise InputError(f"the model's processor pads every image to one size, and batches need no more; {remedy}")


def size_in_model(model_size: ModelSize, size: Optional[Size]) -> Optional[Size]:
    """`model_size`, and None for an image that has no size or that the processor refuses: it is to run alone."""
    try:
        return None if size is None else model_size(size)
    except ImageError:
        return None


def take(
    images: Iterable[ImageSource], color: Color, model_size: ModelSize, sizes: bool
) -> Iterator[tuple[Taken, Optional[Size]]]:
    """Takes one image after another, with the size that it has in a batch.

    Files and encoded bytes are left as they are, for another thread to read. Pixels are copied, because the next frame may
    overwrite them. What an image, or the iterable itself, raises comes in its place.

    Args:
        images: as in `Predictor.detect`.
        color: of the arrays.
        model_size: the size of an image in a batch.
        sizes: whether sizes are wanted. Else all are None.
    """
    try:
        for source in images:
            taken = _taken(source, color)
            size = size_of_image(taken) if sizes and not isinstance(taken, Exception) else None
            yield taken, size_in_model(model_size, size)
    except Exception as error:
        yield error, None


def _taken(source: ImageSource, color: Color) -> Taken:
    if isinstance(source, (str, os.PathLike, bytes)):
        return source
    try:
        return borrow_pixels(source, color).copy()
    except (ImageError, InputError) as error:
        return error


def read(taken: Taken, color: Color) -> Union[Picture, Exception]:
    """The pixels of an image that was taken, or why there are none."""
    if isinstance(taken, (Image.Image, np.ndarray, Exception)):
        return taken
    try:
        return borrow_pixels(taken, color)
    except (ImageError, InputError) as error:
        return error


def find_in(
    run: Callable[[list[Picture]], list[Found]],
    pictures: Sequence[Union[Picture, Failure]],
    model_size: ModelSize,
    batch: int,
    max_padding: float,
) -> list[Union[Found, Failure, ImageError, InputError]]:
    """What a model finds in pictures whose headers said that they may share a batch.

    Args:
        run: gives one result for each picture of a batch.
        pictures: RGB; or errors, which are handed on. Pictures that turn out to have other sizes run apart.
        model_size, batch, max_padding: decide about that, as in `group_by_size`.

    Returns:
        A result for each picture, or the ImageError or InputError that it causes.
    """
    found: dict[int, Union[Found, Failure, ImageError, InputError]] = {}
    found.update((number, picture) for number, picture in enumerate(pictures) if isinstance(picture, Exception))
    loaded = {number: picture for number, picture in enumerate(pictures) if not isinstance(picture, Exception)}
    sized = ((number, size_in_model(model_size, size_of(picture, LAST))) for number, picture in loaded.items())
    for numbers in group_by_size(sized, batch, max_padding):
        results = _results(run, [loaded[number] for number in numbers])
        found.update(zip(numbers, results))
    return [found[number] for number in range(len(pictures))]


def _results(
    run: Callable[[list[Picture]], list[Found]], pictures: list[Picture]
) -> list[Union[Found, ImageError, InputError]]:
    """What the model finds. If a batch fails, each picture runs alone, so that an error reaches only the one that has it."""
    try:
        return [*run(pictures)]
    except (ImageError, InputError) as error:
        if len(pictures) == 1:
            return [error]
    return [found for picture in pictures for found in _results(run, [picture])]
