"""One batch of image files: they are read, run through the model, drawn and written. An error stays with its file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import DetrError, ImageError, InputError
from detr_export.runtimes.files import replacing, writing
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.batch import Picture
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.results.segmentation import KINDS
from detr_export.runtimes.results.values import Value
from detr_export.runtimes.sources import Source
from detr_export.runtimes.stream import find_in, require_batches
from detr_export.runtimes.tasks import DETECTION, TABLES, TASKS, Result, document_of, drawing_of, names_of

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
    classes: Optional[frozenset[str]] = None  # names of the classes that are kept; None for all
    style: DrawingStyle = PLAIN  # of the annotated copies


@dataclass(frozen=True)
class FileJob:
    """One picture, and where its annotated copy goes."""

    source: Source
    picture: Optional[Path] = None


@dataclass(frozen=True, eq=False)
class FilePrediction(Value):
    """The outcome for one picture. Either `result` or `error` is set."""

    source: Source
    result: Optional[Result] = None
    picture: Optional[Path] = None  # the annotated copy, if there is an output folder
    error: Optional[DetrError] = None
    has_more_pages: bool = False  # whether its file has pages that nobody asked for

    @property
    def image(self) -> Union[Path, str]:
        """The file, the address, or "-" for stdin."""
        return self.source.image

    @property
    def names(self) -> list[str]:
        """The classes of the objects that were found; `table` for each table."""
        return [] if self.result is None else names_of(self.result)

    def summary(self) -> str:
        """One line for people: the file and the objects in it, the most frequent class first; or the sizes of its tables."""
        if self.error is not None:
            return f"{self.source.title}: {self.error}"
        if isinstance(self.result, list):
            found = [f"a table of {len(table.rows)} rows and {len(table.columns)} columns" for table in self.result]
        else:
            found = [f"{count} {name}" for name, count in Counter(self.names).most_common()]
        return f"{self.source.title}: {', '.join(found) or 'nothing found'}"

    def to_dict(self) -> dict[str, Any]:
        """The outcome in types that JSON has."""
        result: dict[str, Any] = {"image": str(self.image), "file": self.source.file}
        if self.source.page is not None:
            result["page"] = self.source.page
        if self.picture is not None:
            result["picture"] = str(self.picture)
        if self.error is not None:
            result["error"] = str(self.error)
        if self.result is not None:
            result.update(document_of(self.result))
        return result


def require_file_batches(predictor: Predictor, task: str, batch: int, max_padding: float) -> None:
    """Refuses batches that a task or a model does not have.

    Raises:
        InputError: says which limit there is.
    """
    if batch > 1 and task == ATTENTION:
        raise InputError(f"batch is {batch}, but attention is read off one image at a time; leave batch (--batch) out")
    require_batches(predictor.session, predictor.processor, task, batch, max_padding)


def require_style(task: str, style: DrawingStyle) -> None:
    """Refuses what a style says of things that the drawings of a task do not have.

    Raises:
        InputError: says what to leave out.
    """
    has_lines, has_labels = task in (DETECTION, TABLES), task in (DETECTION, *KINDS)
    if style.line_width is not None and not has_lines:
        raise InputError(f"lines have a fixed width in drawings of the task {task}; leave line_width (--line-width) out")
    if (style.font_size is not None or not style.labels) and not has_labels:
        raise InputError(
            f"labels are fixed, or there are none, in drawings of the task {task}; leave font_size (--font-size) and labels "
            "(--hide-labels) out"
        )


def predict_batch(predictor: Predictor, jobs: list[FileJob], options: FileOptions) -> list[FilePrediction]:
    """Reads, runs, draws and writes pictures.

    Args:
        predictor: the model.
        jobs: pictures whose headers say that they may share a batch.
        options: the task and its limits. Images that turn out to have other sizes run apart.

    Returns:
        One outcome for each picture. ImageError and InputError are in the outcomes.

    Raises:
        OutputError, BackendError, ArtifactError: as in `predict_files`.
    """
    loaded = [_loaded(job.source) for job in jobs]
    images = [image for image, _ in loaded]
    found = find_in(
        partial(run_pictures, predictor, options), images, predictor.model_size, options.batch, options.max_padding
    )
    outcomes = []
    for job, (image, more_pages), result in zip(jobs, loaded, found):
        if isinstance(image, ImageError):
            outcomes.append(FilePrediction(job.source, error=image))
        elif isinstance(result, (ImageError, InputError)):  # it describes the picture but does not name the file
            outcomes.append(FilePrediction(job.source, error=type(result)(f"{job.source.title}: {result}")))
        else:
            value, attention = result
            if job.picture is not None:
                _draw(value, attention, image, job.picture, options.style)
            outcomes.append(FilePrediction(job.source, value, job.picture, has_more_pages=more_pages))
    return outcomes


def _loaded(source: Source) -> tuple[Union[Image.Image, ImageError], bool]:
    try:
        return source.load()
    except ImageError as error:
        return error, False


_Found = tuple[Result, Optional[np.ndarray]]  # and the attention of the task with that name


def run_pictures(predictor: Predictor, options: FileOptions, images: list[Picture]) -> list[_Found]:
    """What the model finds in pictures that share a batch, and is wanted; with the attention of the task of that name.

    Args:
        predictor: the model.
        options: the task and its limits.
        images: RGB, or `ReadyPicture`s.

    Raises:
        DetrError: as in `Predictor.predict`.
    """
    if options.task == ATTENTION:
        explained = [predictor.explain(image, options.threshold, clip=options.clip) for image in images]
        return [_kept(found, attention, options.classes) for found, attention in explained]
    results = predictor.predict([*images], options.task, options.threshold, clip=options.clip, batch_size=options.batch)
    return [_kept(result, None, options.classes) for result in results]


def _kept(result: Result, attention: Optional[np.ndarray], classes: Optional[frozenset[str]]) -> _Found:
    """What is left of a result if only some classes are wanted."""
    if classes is None or isinstance(result, list):
        return result, attention
    if attention is not None and isinstance(result, Detections):
        attention = attention[[name in classes for name in result.names]]
    return result.of_classes(classes), attention


def _draw(result: Result, attention: Optional[np.ndarray], image: Image.Image, picture: Path, style: DrawingStyle) -> None:
    if attention is not None and isinstance(result, Detections):
        drawn = result.draw_attention(image, attention)
    else:
        drawn = drawing_of(result, image, style)
    with replacing(picture) as temporary, writing(picture):
        drawn.save(temporary, compress_level=_PNG_LEVEL)
