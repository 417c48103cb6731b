"""One video from its first frame to its totals. What is wrong with the video is part of the outcome, not an exception."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.counts import most_frequent
from detr_export.runtimes.errors import DetrError, ImageError, InputError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.tasks import DETECTION, names_of
from detr_export.runtimes.video.prediction import FramePrediction, predict_video
from detr_export.runtimes.video.reader import VideoReader
from detr_export.runtimes.video.recording import Recording
from detr_export.runtimes.video.sources import VideoSource
from detr_export.runtimes.video.writing import CODECS


@dataclass(frozen=True)
class VideoOptions:
    """What is done with each video."""

    task: str = DETECTION
    threshold: float = 0.5
    clip: bool = True  # whether boxes end at the edges of the frame
    classes: Optional[Collection[str]] = None  # names of the classes that are kept; None for all
    batch: int = 1  # most frames of one run of the model
    style: DrawingStyle = PLAIN  # of the drawn video
    every: int = 1  # one frame of so many
    frames: Optional[int] = None  # most frames
    seconds: Optional[float] = None  # of the video
    reconnect: Optional[float] = None  # of a live source: for how many seconds a lost one is tried again


@dataclass
class VideoRun:
    """Predicts on one video: iterate over `predictions` once, then the other fields have the totals.

    Args:
        predictor, source, options: what runs on what, and how.
        place: of the drawn video and the lines of results, without a suffix; None writes nothing.
    """

    predictor: Predictor
    source: VideoSource
    options: VideoOptions
    place: Optional[Path] = None
    frames: int = 0  # that have a result
    elapsed: float = 0.0  # seconds
    dropped: int = 0  # frames of a live source that nobody took in time
    damaged: int = 0  # frames, or parts, that could not be decoded
    expected: Optional[int] = None  # about how many frames there will be
    objects: Counter[str] = field(default_factory=Counter)  # of each class, over all frames
    error: Optional[DetrError] = None  # what is wrong with the video
    fitted: int = 0  # frames of another size than that of the drawn video
    codec: Optional[str] = None  # of the drawn video

    def predictions(self) -> Generator[FramePrediction, None, None]:
        """Predicts, and writes the results.

        Raises:
            OutputError: the results cannot be written.
            ArtifactError, BackendError, InputError: as of `predict_video` at its beginning.
        """
        options, began = self.options, time.perf_counter()
        with ExitStack() as stack:
            recording = None if self.place is None else stack.enter_context(Recording(self.place))
            reader = stack.enter_context(
                VideoReader(self.source, options.every, options.frames, options.seconds, options.reconnect)
            )
            found = predict_video(
                self.predictor,
                reader,
                options.task,
                options.threshold,
                clip=options.clip,
                classes=options.classes,
                batch_size=options.batch,
                style=None if recording is None else options.style,
            )
            stack.enter_context(closing(found))
            while True:
                try:
                    prediction = next(found)
                except StopIteration:
                    break
                except (ImageError, InputError) as error:
                    self.error = error
                    break
                finally:
                    self.elapsed, self.expected = time.perf_counter() - began, reader.expected
                    self.dropped, self.damaged = reader.dropped, reader.damaged
                self.frames += 1
                self.objects.update(names_of(prediction.result))
                if recording is not None and reader.about is not None:
                    recording.add(prediction, self.line(prediction), reader.about)
                yield prediction
        if recording is not None:
            self.fitted, self.codec = recording.fitted, recording.codec

    def line(self, prediction: FramePrediction) -> dict[str, Any]:
        """The document of one frame, as in the file of results."""
        return {"video": self.source.title, **prediction.to_dict()}

    def error_line(self) -> dict[str, Any]:
        """The document of what is wrong with the video."""
        return {"video": self.source.title, "error": str(self.error)}

    def summary(self) -> str:
        """One line for people: frames, speed, what was lost, and the objects of each class, the most frequent first."""
        speed = f"{self.frames / max(self.elapsed, 1e-9):.1f} a second"
        lost = [f"{count} {what}" for count, what in ((self.dropped, "dropped"), (self.damaged, "damaged")) if count]
        found = ", ".join(f"{count} {name}" for name, count in most_frequent(self.objects)) or "nothing found"
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return f"{self.source.title}: {', '.join([frames, speed, *lost])}: {found}"

    def notes(self) -> list[str]:
        """What a user should know of the drawn video."""
        notes = []
        if self.fitted:
            notes.append(f"{self.source.title} changes its size; {self.fitted} drawn frames are fitted into the first one's")
        if self.codec not in (None, CODECS[0]):
            notes.append(f"this ffmpeg has no {CODECS[0]}; the drawn video is in {self.codec}, which browsers do not play")
        return notes
