"""Predicts on files: pictures and one JSON document go into a folder. A file that cannot be read is reported and skipped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.errors import DetrError, ImageError, InputError, OutputError
from detr_export.runtimes.files import replacing, require_writable, write_atomically, writing
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.tasks import TASKS, Result, document_of, drawing_of, run_task
from detr_export.runtimes.thresholds import require_shares

RESULTS_NAME = "predictions.json"
ATTENTION = "attention"
FILE_TASKS = (*TASKS, ATTENTION)


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


def predict_files(
    predictor: Predictor,
    images: Iterable[Path],
    threshold: float = 0.5,
    output: Optional[Path] = None,
    overwrite: bool = False,
    task: str = "detection",
) -> Iterator[FilePrediction]:
    """Predicts file by file, and yields each outcome as soon as it is there.

    Args:
        predictor: the model.
        images: the files.
        threshold: as in `Predictor.detect`.
        output: a folder for annotated pictures (PNG, named after the image) and `predictions.json`; with None nothing is
            written. The document is written at the end and covers all files, even if some failed.
        overwrite: whether to replace files that exist.
        task: one of `FILE_TASKS`; `attention` detects objects, and draws where the decoder looked for each of them.

    Raises:
        InputError: the task or the threshold is invalid.
        OutputError: a picture or the document exists and `overwrite` is false, or it cannot be written.
        BackendError: the backend failed. A file that is not a usable image does not raise; its outcome has the error.
    """
    # Everything that can be refused is refused before the first image runs.
    images = list(images)
    if task not in FILE_TASKS:
        raise InputError(f"task is {task!r}; expected one of {', '.join(FILE_TASKS)}")
    require_shares(threshold=threshold)
    pictures = _picture_paths(images, output) if output is not None else {}
    originals = {image.resolve() for image in images}
    for path in pictures.values():
        require_writable(path, overwrite)
        if path.resolve() in originals:
            raise OutputError(f"{path} is one of the images, and would be overwritten; give another folder")
    if output is not None:
        require_writable(output / RESULTS_NAME, overwrite)

    outcomes = []
    for image in images:
        try:
            outcome = _predict(predictor, image, threshold, pictures.get(image), task)
        except (ImageError, InputError) as error:
            outcome = FilePrediction(image, error=error)
        outcomes.append(outcome.to_dict())
        yield outcome
    if output is not None:
        write_atomically(output / RESULTS_NAME, (json.dumps(outcomes, indent=2) + "\n").encode())


def _predict(predictor: Predictor, image: Path, threshold: float, picture: Optional[Path], task: str) -> FilePrediction:
    loaded = load_image(image)
    result: Result
    attention = None
    try:
        if task == ATTENTION:
            result, attention = predictor.explain(loaded, threshold)
        else:
            result = run_task(predictor, task, loaded, threshold)
    except (ImageError, InputError) as error:  # it describes the picture but does not name the file
        raise type(error)(f"{image}: {error}") from error
    if picture is not None:
        if attention is not None and isinstance(result, Detections):
            drawn = result.draw_attention(loaded, attention)
        else:
            drawn = drawing_of(result, loaded)
        with replacing(picture) as temporary, writing(picture):
            drawn.save(temporary)
    return FilePrediction(image, result, picture)


def _picture_paths(images: list[Path], output: Path) -> dict[Path, Path]:
    """A path for the picture of each image. If several images have one stem, the later ones get a number."""
    taken: set[str] = set()
    paths = {}
    for image in images:
        name, number = image.stem, 1
        while name in taken:
            number += 1
            name = f"{image.stem}-{number}"
        taken.add(name)
        paths[image] = output / f"{name}.png"
    return paths
