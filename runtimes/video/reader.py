"""`VideoReader`: the frames of a video, camera or stream, read ahead in a thread."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Optional, Union

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.video.decoding import About, Decoder
from detr_export.runtimes.video.frame import VideoFrame
from detr_export.runtimes.video.frame_thread import Ended, FrameThread
from detr_export.runtimes.video.live import RECONNECT, live_frames
from detr_export.runtimes.video.opening import opened
from detr_export.runtimes.video.sources import VideoSource, video_source

_AHEAD = 4  # frames of a file that wait
_NEWEST = 2  # frames of a live source that wait


class VideoReader:
    """Iterates over the frames of a video. A thread decodes the next ones, and ends when the reader is closed.

    No frame of a file is left out. A camera or stream does not wait: when frames come faster than they are taken, the oldest
    that waits is dropped, and `dropped` counts it. Memory does not grow with the length of the video.

    Args:
        source: a file, the number of a camera ("0"), an address (rtsp://, rtsps://), or what `find_videos` found.
        every: yield one frame of so many, beginning with the first.
        frames: end after so many that were yielded.
        seconds: end at the first frame that is so late, by the video's own times.
        reconnect: of a camera or stream: for how many seconds a lost one is tried again; `RECONNECT` if None. 0 does not.

    Raises:
        ImageError: there is no such file. One that cannot be opened or holds no video raises in place of the first frame.
        InputError: an argument is out of its range, or `reconnect` is for a file.
    """

    def __init__(
        self,
        source: Union[str, os.PathLike[str], VideoSource],
        every: int = 1,
        frames: Optional[int] = None,
        seconds: Optional[float] = None,
        reconnect: Optional[float] = None,
    ) -> None:
        for name, value, least in (("every", every, 1), ("frames", frames, 1)):
            if value is not None and value < least:
                raise InputError(f"{name} (--{name}) is {value}; expected at least {least}")
        if seconds is not None and not 0 < seconds < float("inf"):
            raise InputError(f"seconds (--seconds) is {seconds}; expected a number above 0")
        if reconnect is not None and not 0 <= reconnect < float("inf"):
            raise InputError(f"reconnect (--reconnect) is {reconnect}; expected a number of seconds, or 0")
        self.source = source if isinstance(source, VideoSource) else video_source(source)
        if reconnect is not None and not self.source.live:
            raise InputError(f"reconnect (--reconnect) is for cameras and streams, and {self.source.title} is a file")
        self.about: Optional[About] = None  # known from the first frame on
        self._every, self._left, self._seconds = every, frames, seconds
        self._frames = frames
        self._damaged = 0  # of connections that have ended
        self._decoder: Optional[Decoder] = None
        stop = threading.Event()
        if self.source.live:
            patience = RECONNECT if reconnect is None else reconnect
            found = live_frames(self._connection, self.source.title, patience, stop.wait)
        else:
            found = self._of_file()
        room = _NEWEST if self.source.live else _AHEAD
        self._thread = FrameThread(self._wanted(found), room, self.source.live, stop)

    @property
    def dropped(self) -> int:
        """How many frames of a live source were dropped, because nobody took them in time."""
        return self._thread.dropped

    @property
    def damaged(self) -> int:
        """How many frames, or parts of frames, could not be decoded. Those of a file raise an ImageError at its end."""
        return self._damaged + (self._decoder.damaged if self._decoder is not None else 0)

    @property
    def expected(self) -> Optional[int]:
        """About how many frames will come; None if nobody knows."""
        about = self.about
        if about is None or about.frames is None:
            return self._frames
        frames = about.frames
        if self._seconds is not None and about.rate is not None:
            frames = min(frames, math.ceil(self._seconds * about.rate))
        frames = -(-frames // self._every)
        return frames if self._frames is None else min(frames, self._frames)

    def take(self, wait: Optional[float] = None) -> Optional[VideoFrame]:
        """The next frame, or None if none came within `wait` seconds.

        Raises:
            Ended: there are no more.
            ImageError: as in iterating.
        """
        if self._left == 0:
            self._thread.stop()
            raise Ended
        frame = self._thread.take(wait)
        if frame is not None and self._left is not None:
            self._left -= 1
        return frame

    def __iter__(self) -> VideoReader:
        return self

    def __next__(self) -> VideoFrame:
        """The next frame.

        Raises:
            ImageError: a file is cut short or damaged (after all frames that can be used), or a stream is lost.
        """
        try:
            frame = self.take()
        except Ended:
            raise StopIteration from None
        assert frame is not None  # it was waited for
        return frame

    def close(self) -> None:
        """Ends the thread. Of a stream that is silent this can take seconds."""
        self._thread.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _of_file(self) -> Generator[VideoFrame, None, None]:
        with self._connection() as frames:
            yield from frames

    @contextmanager
    def _connection(self) -> Iterator[Iterator[VideoFrame]]:
        with opened(self.source) as video:
            decoder = Decoder(video, self.source.title, self.source.live)
            self._decoder, self.about = decoder, decoder.about
            try:
                yield decoder.frames()
            finally:
                self._decoder, self._damaged = None, self._damaged + decoder.damaged

    def _wanted(self, frames: Generator[VideoFrame, None, None]) -> Generator[VideoFrame, None, None]:
        """Each Nth frame, up to the last second that is wanted."""
        try:
            for frame in frames:
                if self._seconds is not None and frame.stamp >= self._seconds:
                    return
                if frame.number % self._every == 0:
                    yield frame
        finally:
            frames.close()
