"""Predicts on files: pictures and their results go into a folder. A file that cannot be read is reported, the rest go on."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Optional, Union

from detr_export.runtimes.errors import InputError, OutputError
from detr_export.runtimes.file_batches import (
    FILE_TASKS,
    FileJob,
    FileOptions,
    FilePrediction,
    predict_batch,
    require_file_batches,
    require_style,
)
from detr_export.runtimes.files import require_writable
from detr_export.runtimes.grouping import Size
from detr_export.runtimes.pipeline import WORKERS
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.result_files import FORMATS, result_file
from detr_export.runtimes.results.classes import require_classes
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.sources import Source, source_of
from detr_export.runtimes.stream import size_in_model
from detr_export.runtimes.tasks import require_clip, require_filter
from detr_export.runtimes.thresholds import require_shares

__all__ = ["FILE_TASKS", "FORMATS", "RESULTS_NAME", "FilePrediction", "predict_files"]

RESULTS_NAME = "predictions.json"  # of the format json


def predict_files(
    predictor: Predictor,
    images: Iterable[Union[Path, Source]],
    threshold: float = 0.5,
    output: Optional[Path] = None,
    overwrite: bool = False,
    task: str = "detection",
    batch: int = 1,
    max_padding: float = 0.0,
    workers: int = WORKERS,
    clip: bool = True,
    form: str = "json",
    annotations: Optional[Path] = None,
    classes: Optional[Collection[str]] = None,
    style: DrawingStyle = PLAIN,
) -> Generator[FilePrediction, None, None]:
    """Predicts on files, and yields the outcomes in the order of the files, each as soon as those before it are there.

    While the model runs, threads read and prepare the next images, and draw and write the last ones. They have ended when
    the iterator has: at its end, after an exception, and when it is closed. Pictures that were finished by then stay.

    Args:
        predictor: the model. One that runs in ONNX Runtime on the CPU should be loaded with `spinning=False`, or its idle
            threads take the cores from the others.
        images: the files; or what `find_sources` found.
        threshold: as in `Predictor.detect`.
        output: a folder for annotated pictures (PNG, named after the image, those of a folder in the same sub-folders) and
            a file of results; with None nothing is written. That file is written at the end and covers all images, even if
            some failed. The formats yolo and labelme have a file beside each annotated picture instead.
        overwrite: whether to replace files that exist.
        task: one of `FILE_TASKS`; `attention` detects objects, and draws where the decoder looked for each of them.
        batch: most images of one run of the model. They are grouped by the size at which the model gets them, see
            `group_by_size`; an end-to-end file gets them as they are.
        max_padding: the largest share of a batch's pixels that may be padding. Padding changes what a DETR finds. With 0
            images of one size run together, and results are those of one image at a time, up to rounding.
        workers: threads beside the model's own. At most twice as many batches of results are in memory, and of images as
            many batches as workers; with `batch` above 1 also the results that wait for a batch that fills slowly. 0 means
            no threads: one batch is read, run and drawn after another.
        clip: as in `Predictor.detect`. Segments have the boxes of their masks, so False is refused for them.
        form, annotations: the format of the file of results, as in `result_file`.
        classes: names of the classes that are kept; None for all.
        style: of the pictures.

    Raises:
        AnnotationError: as in `result_file`.
        InputError: the task, the threshold, `batch`, `max_padding`, `workers` or `clip` is invalid; the model does not have
            such batches or classes; or the format, the style or a choice of classes does not fit the task.
        OutputError: a picture or the document exists and `overwrite` is false, or it cannot be written.
        BackendError: the backend failed, or the extra for the format is not installed. A file that is not a usable image
            does not raise; its outcome has the error.
    """
    # Everything that can be refused is refused before the first image runs.
    sources = [source_of(image) if isinstance(image, Path) else image for image in images]
    if task not in FILE_TASKS:
        raise InputError(f"task is {task!r}; expected one of {', '.join(FILE_TASKS)}")
    require_shares(threshold=threshold)
    if workers < 0:
        raise InputError(f"workers is {workers}; expected a number of threads, or 0 for none")
    require_clip(task, clip)
    require_file_batches(predictor, task, batch, max_padding)
    require_style(task, style)
    wanted = None
    if classes is not None:
        require_filter(task)
        wanted = require_classes(classes, predictor.id2label)
    pictures = _picture_paths(sources, output)
    originals = {source.image.resolve() for source in sources if isinstance(source.image, Path)}
    results = result_file(form, task, sources, predictor.id2label, annotations)
    drawn = [path for path in pictures if path is not None]
    beside = [path for path in map(results.path_beside, drawn) if path is not None]
    for path in (*drawn, *beside):
        require_writable(path, overwrite)
        if path.resolve() in originals:
            raise OutputError(f"{path} is one of the images, and would be overwritten; give another folder")
    if output is not None:
        for path in (output / name for name in results.names):
            require_writable(path, overwrite)
            if path in beside:
                raise OutputError(f"{path} would hold the classes and also the objects of a picture; rename that picture")

    options = FileOptions(task, threshold, batch, max_padding, clip, wanted, style)
    jobs = [FileJob(source, picture) for source, picture in zip(sources, pictures)]
    with closing(_outcomes(predictor, jobs, options, workers)) as outcomes:
        for outcome in outcomes:
            if output is not None:
                results.add(outcome)
            yield outcome
    if output is not None:
        results.write(output)


def _outcomes(
    predictor: Predictor, jobs: list[FileJob], options: FileOptions, workers: int
) -> Generator[FilePrediction, None, None]:
    def finish(predictor: Predictor, batch: list[FileJob]) -> list[FilePrediction]:
        return predict_batch(predictor, batch, options)

    def sized() -> Iterator[tuple[FileJob, Optional[Size]]]:
        for job in jobs:
            yield job, None if options.batch == 1 else size_in_model(predictor.model_size, job.source.size())

    return predictor.in_batches(finish, sized(), options.batch, options.max_padding, workers)


def _picture_paths(sources: Sequence[Source], output: Optional[Path]) -> list[Optional[Path]]:
    """A path for the picture of each source. If several have one place, the later ones get a number."""
    taken: set[Path] = set()
    paths: list[Optional[Path]] = []
    for source in sources:
        place, number = source.place, 1
        while place in taken:
            number += 1
            place = source.place.with_name(f"{source.place.name}-{number}")
        taken.add(place)
        paths.append(None if output is None else output / place.with_name(f"{place.name}.png"))
    return paths
