"""Predicts on the frames of a video, in their order, while threads decode, run the model and draw."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional, Union

from PIL import Image

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.file_batches import require_style
from detr_export.runtimes.grouping import Size
from detr_export.runtimes.pipeline import WORKERS
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.batch import Picture
from detr_export.runtimes.results.classes import require_classes
from detr_export.runtimes.results.drawing_style import DrawingStyle
from detr_export.runtimes.stream import find_in, require_batches, size_in_model
from detr_export.runtimes.tasks import DETECTION, Result, document_of, drawing_of, require_filter
from detr_export.runtimes.video.frame import VideoFrame
from detr_export.runtimes.video.frame_thread import Ended
from detr_export.runtimes.video.reader import VideoReader
from detr_export.runtimes.video.sources import VideoSource

_LIVE_WORKERS = 2  # at most: each more would let two more frames of a live source grow old
_TICK = 0.05  # seconds; after so long without a new frame of a live source, results that are there are handed out

_Found = tuple[Result, Optional[Image.Image]]  # and the drawn copy
_Taken = Union[VideoFrame, Exception, None]  # a frame, why there is none, or a moment without a new frame


@dataclass(frozen=True)
class FramePrediction:
    """What was found in one frame."""

    frame: VideoFrame = field(repr=False)
    result: Result
    drawn: Optional[Image.Image] = field(default=None, repr=False)  # a copy of the frame with the result, if asked for

    @property
    def number(self) -> int:
        """Of the frame in its video, from 0."""
        return self.frame.number

    @property
    def time(self) -> float:
        """Seconds after the first frame."""
        return self.frame.time

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON has: `frame`, `time`, and what the result's own `to_dict` says."""
        return {"frame": self.number, "time": self.time, **document_of(self.result)}


def predict_video(
    predictor: Predictor,
    source: Union[str, os.PathLike[str], VideoSource, VideoReader],
    task: str = DETECTION,
    threshold: float = 0.5,
    *,
    clip: bool = True,
    classes: Optional[Collection[str]] = None,
    batch_size: int = 1,
    workers: int = WORKERS,
    style: Optional[DrawingStyle] = None,
) -> Generator[FramePrediction, None, None]:
    """Predicts on a video, camera or stream, and yields what is in its frames, in their order.

    A thread decodes, others run the model and draw. They have ended when the iterator has: at its end, after an exception,
    and when it is closed. The number of frames in memory is bounded, however long the video is.

    Args:
        predictor: the model. One that runs in ONNX Runtime on the CPU should be loaded with `spinning=False`.
        source: what `VideoReader` takes; or a reader, which is not closed here.
        task, threshold, clip: as in `Predictor.predict`.
        classes: names of the classes that are kept; None for all.
        batch_size: most frames of one run of the model; all of a batch have one size.
        workers: threads beside the model's own, as in `predict_files`. A live source has two at most, so that its results
            are of new frames.
        style: of drawn copies of the frames; None for no copies.

    Raises:
        ArtifactError, InputError: at once, if the model or the task does not have what is asked for.
        ImageError: the source cannot be read, after the results of the frames that could be.
        InputError: the model does not take a frame; the message has its number.
        BackendError: the backend failed.
    """
    if workers < 0:
        raise InputError(f"workers is {workers}; expected a number of threads, or 0 for none")
    predictor.predict([], task, threshold, clip=clip)  # refuses what the method for the task refuses
    require_batches(predictor.session, predictor.processor, task, batch_size, 0.0)
    wanted = None
    if classes is not None:
        require_filter(task)
        wanted = require_classes(classes, predictor.id2label)
    if style is not None:
        require_style(task, style)

    def run(model: Predictor, pictures: list[Picture]) -> list[_Found]:
        results = model.predict([*pictures], task, threshold, clip=clip, batch_size=batch_size)
        kept = [item if wanted is None or isinstance(item, list) else item.of_classes(wanted) for item in results]
        return [(item, _drawn(item, picture, style)) for item, picture in zip(kept, pictures)]

    def find(model: Predictor, batch: list[_Taken]) -> list[Union[FramePrediction, Exception, None]]:
        frames = [frame for frame in batch if isinstance(frame, VideoFrame)]
        pixels: list[Union[Picture, ImageError]] = [frame.pixels for frame in frames]
        found = find_in(partial(run, model), pixels, predictor.model_size, batch_size, 0.0)
        waiting = iter(found)
        return [_outcome(frame, next(waiting), title) if isinstance(frame, VideoFrame) else frame for frame in batch]

    reader = source if isinstance(source, VideoReader) else VideoReader(source)
    title = reader.source.title
    if reader.source.live:
        workers = min(workers, _LIVE_WORKERS)
    tasks = _tasks(predictor, reader, batch_size > 1)
    return _results(predictor.in_batches(find, tasks, batch_size, 0.0, workers), None if reader is source else reader)


def _tasks(predictor: Predictor, reader: VideoReader, sized: bool) -> Iterator[tuple[_Taken, Optional[Size]]]:
    """The frames, with their sizes in a batch, and the error that ends them in its place."""
    wait = _TICK if reader.source.live else None
    while True:
        try:
            frame = reader.take(wait)
        except Ended:
            return
        except Exception as error:
            yield error, None
            return
        yield frame, size_in_model(predictor.model_size, frame.size) if sized and frame is not None else None


def _drawn(result: Result, picture: Picture, style: Optional[DrawingStyle]) -> Optional[Image.Image]:
    if style is None:
        return None
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return drawing_of(result, image, style)


def _outcome(frame: VideoFrame, found: Union[_Found, Exception], title: str) -> Union[FramePrediction, Exception]:
    if isinstance(found, (ImageError, InputError)):
        return type(found)(f"{title}: frame {frame.number}, at {frame.time:.2f} s: {found}")
    return found if isinstance(found, Exception) else FramePrediction(frame, *found)


def _results(
    outcomes: Generator[Union[FramePrediction, Exception, None], None, None], reader: Optional[VideoReader]
) -> Generator[FramePrediction, None, None]:
    """The results, up to the first error, which is raised."""
    try:
        with closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome is not None:
                    yield outcome
    finally:
        if reader is not None:
            reader.close()
