"""The two files of results of a video, written as the frames come: NAME.mp4 and NAME.jsonl.

They are not written apart and moved into place: a stream may have no end, and what is finished is to be there after a kill,
too. Old files stay until the first frame has its result.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Optional

from detr_export.runtimes.errors import InputError, OutputError
from detr_export.runtimes.files import make_folder, require_writable, writing
from detr_export.runtimes.video.decoding import About
from detr_export.runtimes.video.prediction import FramePrediction
from detr_export.runtimes.video.sources import FILE, VideoSource
from detr_export.runtimes.video.writing import VideoWriter

VIDEO, LINES = ".mp4", ".jsonl"
_WAITING = 4  # frames that wait for the encoder


class Recording:
    """Writes the results of one video in a thread. Use it as a context manager: leaving it finishes the files.

    Whatever ends the block, also Ctrl-C, all frames that were added are in both files.

    Args:
        place: of the files, without a suffix.
    """

    def __init__(self, place: Path) -> None:
        self.fitted = 0  # frames of another size than the first one
        self.codec: Optional[str] = None  # of the video
        self._video, self._lines = _with(place, VIDEO), _with(place, LINES)
        self._files = ExitStack()
        self._writer: Optional[VideoWriter] = None
        self._text: Optional[BinaryIO] = None
        self._thread = ThreadPoolExecutor(1, "recording")
        self._waiting: deque[Future[None]] = deque()

    def add(self, found: FramePrediction, line: dict[str, Any], about: About) -> None:
        """Hands one frame to the thread. Waits if the thread is behind.

        Args:
            found: the frame, with its drawing.
            line: its document.
            about: of its video.

        Raises:
            InputError: it is not drawn.
            OutputError: an earlier frame cannot be written.
        """
        if found.drawn is None:
            raise InputError("the frame is not drawn; give predict_video a style")
        self._waiting.append(self._thread.submit(self._write, found, line, about))
        while len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._waiting.append(self._thread.submit(self._finish))
        self._thread.shutdown(wait=True)
        failures = [failed for failed in (future.exception() for future in self._waiting) if failed is not None]
        if failures and kind is None:
            raise failures[0]

    def _write(self, found: FramePrediction, line: dict[str, Any], about: About) -> None:
        assert found.drawn is not None
        if self._text is None:
            self._text = self._created(self._lines)
        with writing(self._lines):
            self._text.write((json.dumps(line) + "\n").encode())
            self._text.flush()
        with writing(self._video):
            if self._writer is None:
                file = self._created(self._video)
                self._writer = VideoWriter(file, str(self._video), found.frame.size, about)
                self.codec = self._writer.codec
            self._writer.add(found.drawn, found.frame.stamp)
        self.fitted = self._writer.fitted

    def _created(self, path: Path) -> BinaryIO:
        make_folder(path.parent)
        with writing(path):
            path.unlink(missing_ok=True)  # --overwrite, which was asked about before
            return self._files.enter_context(open(path, "xb"))

    def _finish(self) -> None:
        with writing(self._video), self._files:
            if self._writer is not None:
                self._writer.finish()


def recording_places(videos: Sequence[VideoSource], output: Path, overwrite: bool) -> list[Path]:
    """Where the results of each video go, without a suffix. If several have one name, the later ones get a number.

    Raises:
        OutputError: a file is there and `overwrite` is false, it cannot be written, or it is one of the videos.
    """
    originals = {Path(video.given).resolve() for video in videos if video.kind == FILE}
    taken: set[str] = set()
    places = []
    for video in videos:
        name, number = video.name, 1
        while name in taken:
            number += 1
            name = f"{video.name}-{number}"
        taken.add(name)
        place = output / name
        for path in (_with(place, VIDEO), _with(place, LINES)):
            require_writable(path, overwrite)
            if path.resolve() in originals:
                raise OutputError(f"{path} is one of the videos, and would be overwritten; give another folder")
        places.append(place)
    return places


def _with(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)
