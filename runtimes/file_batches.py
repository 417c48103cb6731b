"""One batch of image files: they are read, run through the model, drawn and written. An error stays with its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import DetrError, ImageError, InputError
from detr_export.runtimes.files import replacing, writing
from detr_export.runtimes.grouping import Size, group_by_size, require_grouping
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.session import takes_padding
from detr_export.runtimes.tasks import DETECTION, TABLES, TASKS, Result, document_of, drawing_of, largest_batch, run_task

ATTENTION = "attention"
FILE_TASKS = (*TASKS, ATTENTION)
_PNG_LEVEL = 1  # of zlib. Level 6, the default, takes three times as long; drawn photographs become a few percent smaller


@dataclass(frozen=True)
class FileOptions:
    """What is done with files."""

    task: str  # one of `FILE_TASKS`
    threshold: float
    batch: int  # most images of one run
    max_padding: float  # largest share of a batch's pixels that may be padding
    clip: bool  # whether boxes end at the edges of the image


@dataclass(frozen=True)
class FilePrediction:
    """The outcome for one file. Either `result` or `error` is set."""

    image: Path
    result: Optional[Result] = None
    picture: Optional[Path] = None  # the annotated copy, if there is an output folder
    error: Optional[DetrError] = None

    def summary(self) -> str:
        """One line for people: the file and the objects in it, the most frequent class first; or the sizes of its tables."""
        if self.result is None:
            return f"{self.image}: {self.error}"
        if isinstance(self.result, list):
            found = [f"a table of {len(table.rows)} rows and {len(table.columns)} columns" for table in self.result]
        else:
            objects = (
                self.result.names if isinstance(self.result, Detections) else [item.name for item in self.result.segments]
            )
            found = [f"{count} {name}" for name, count in Counter(objects).most_common()]
        return f"{self.image}: {', '.join(found) or 'nothing found'}"

    def to_dict(self) -> dict[str, Any]:
        """The outcome in types that JSON has."""
        result: dict[str, Any] = {"image": str(self.image)}
        if self.picture is not None:
            result["picture"] = str(self.picture)
        if self.error is not None:
            result["error"] = str(self.error)
        if self.result is not None:
            result.update(document_of(self.result))
        return result


def require_batches(predictor: Predictor, task: str, batch: int, max_padding: float) -> None:
    """Refuses batches that a task or a model does not have.

    Raises:
        InputError: says which limit there is.
    """
    require_grouping(batch, max_padding)
    if batch > 1 and task == ATTENTION:
        raise InputError(f"batch is {batch}, but attention is read off one image at a time; leave batch (--batch) out")
    largest = largest_batch(predictor)
    if largest is not None and batch > largest:
        raise InputError(f"batch is {batch}, but the model takes {largest} at most; give a smaller one (--batch)")
    if not max_padding:
        return
    remedy = "leave max_padding (--max-padding) out"
    if batch == 1:
        raise InputError("max_padding is for batches, and batch (--batch) is 1; give a larger one")
    if task not in (DETECTION, TABLES):
        raise InputError(f"images are not padded for the task {task}, because its maps would cover the padding; {remedy}")
    processor = predictor.processor
    if not takes_padding(predictor.session.inputs) or not processor.do_pad:
        raise InputError(f"the model takes no padded images: it has no pixel mask, or its processor does not pad; {remedy}")
    if processor.pad_size is not None:
        raise InputError(f"the model's processor pads every image to one size, and batches need no more; {remedy}")


def size_in_model(predictor: Predictor, size: Optional[Size]) -> Optional[Size]:
    """`Predictor.model_size`, and None for an image that has no size or that the processor refuses: it is to run alone."""
    try:
        return None if size is None else predictor.model_size(size)
    except ImageError:
        return None


def predict_batch(
    predictor: Predictor, files: list[Path], options: FileOptions, pictures: Mapping[Path, Path]
) -> list[FilePrediction]:
    """Reads, runs, draws and writes image files.

    Args:
        predictor: the model.
        files: of images whose headers say that they may share a batch.
        options: the task and its limits. Images that turn out to have other sizes run apart.
        pictures: where the annotated copy of each file goes; it lacks those that are not to be drawn.

    Returns:
        One outcome for each file. ImageError and InputError are in the outcomes.

    Raises:
        OutputError, BackendError, ArtifactError: as in `predict_files`.
    """
    outcomes: dict[int, FilePrediction] = {}
    loaded: dict[int, Image.Image] = {}
    for number, file in enumerate(files):
        image = _loaded(file)
        if isinstance(image, ImageError):
            outcomes[number] = FilePrediction(file, error=image)
        else:
            loaded[number] = image
    sized = [(number, size_in_model(predictor, (image.height, image.width))) for number, image in loaded.items()]
    for numbers in group_by_size(sized, options.batch, options.max_padding):
        found = _results(predictor, [loaded[number] for number in numbers], options)
        for number, (result, attention) in zip(numbers, found):
            file = files[number]
            if isinstance(result, DetrError):  # it describes the picture but does not name the file
                outcomes[number] = FilePrediction(file, error=type(result)(f"{file}: {result}"))
                continue
            picture = pictures.get(file)
            if picture is not None:
                _draw(result, attention, loaded[number], picture)
            outcomes[number] = FilePrediction(file, result, picture)
    return [outcomes[number] for number in range(len(files))]


def _loaded(file: Path) -> Union[Image.Image, ImageError]:
    try:
        return load_image(file)
    except ImageError as error:
        return error


_Found = tuple[Union[Result, ImageError, InputError], Optional[np.ndarray]]  # and the attention of the task with that name


def _results(predictor: Predictor, images: list[Image.Image], options: FileOptions) -> list[_Found]:
    """What the model finds. If a batch fails, each image runs alone, so that an error reaches only the one that has it."""
    try:
        if options.task == ATTENTION:
            return [predictor.explain(image, options.threshold, clip=options.clip) for image in images]
        results = run_task(predictor, options.task, images, options.threshold, options.clip)
        return [(result, None) for result in results]
    except (ImageError, InputError) as error:
        if len(images) == 1:
            return [(error, None)]
    return [found for image in images for found in _results(predictor, [image], options)]


def _draw(result: Result, attention: Optional[np.ndarray], image: Image.Image, picture: Path) -> None:
    if attention is not None and isinstance(result, Detections):
        drawn = result.draw_attention(image, attention)
    else:
        drawn = drawing_of(result, image)
    with replacing(picture) as temporary, writing(picture):
        drawn.save(temporary, compress_level=_PNG_LEVEL)
