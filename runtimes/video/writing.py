"""Writes drawn frames as an MP4 with the times of their video.

The file can be played up to about the last second at any moment while it is written, also after the process was killed:
until it is finished, it is a chain of fragments. Then it becomes a usual MP4.
"""

from __future__ import annotations

import os
from fractions import Fraction
from typing import BinaryIO, Optional

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.stream import VideoStream
from PIL import Image

from detr_export.runtimes.errors import OutputError
from detr_export.runtimes.video.decoding import About
from detr_export.runtimes.video.opening import reason

H264, MPEG4 = "libx264", "mpeg4"
CODECS = (H264, MPEG4)  # the best first

_OPTIONS = {
    H264: {"preset": "veryfast", "crf": "20", "bf": "0"},  # without B-frames the first frame is shown at 0
    MPEG4: {"q:v": "3"},
}
_MP4 = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}  # microseconds
_LARGEST_UNIT = {H264: 1_000_000, MPEG4: 65_535}  # parts of a second that times may be in
_KEY_FRAMES = 50  # frames from one that stands for itself to the next: where players can jump to
_THREADS = 4  # of the encoder, at most
_USUAL_RATE = 25  # frames a second, where the video does not say


class VideoWriter:
    """An MP4 with H.264, or with MPEG-4 Part 2 where this ffmpeg has no encoder for H.264. It has no sound.

    The first picture decides on the size. An odd width or height grows by one pixel, whose column or row is that of its
    neighbour, as most players show even sizes alone. Later pictures of another size are fitted into the first one's, with
    black beside them.

    Args:
        file: to write to and seek in; it stays open.
        name: of the file, for messages.
        size: (height, width) of the first picture.
        about: of the video whose frames are drawn.

    Raises:
        OutputError: there is no encoder, or it does not take the size.
    """

    def __init__(self, file: BinaryIO, name: str, size: tuple[int, int], about: About) -> None:
        self.fitted = 0  # pictures of another size
        self.codec = codec_name()
        self._name, self._size, self._last = name, size, -1
        most = _LARGEST_UNIT[self.codec]
        self._unit = about.time_base if about.time_base.denominator <= most else Fraction(1, most)
        height, width = size
        try:
            self._container = av.open(file, "w", format="mp4", options=_MP4)
            rate = about.rate or Fraction(_USUAL_RATE)
            stream = self._container.add_stream(self.codec, rate=rate.limit_denominator(65_535))
            assert isinstance(stream, VideoStream)
            stream.options = dict(_OPTIONS[self.codec])
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            stream.sample_aspect_ratio = about.pixel_aspect
            stream.codec_context.gop_size = _KEY_FRAMES
            stream.codec_context.time_base = self._unit
            stream.codec_context.thread_count = min(_THREADS, os.cpu_count() or 1)
            stream.codec_context.color_range, stream.codec_context.colorspace = 1, 6  # 16 to 235, and the matrix of BT.601
            self._stream = stream
            self._container.start_encoding()
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise self._failed(error) from None

    def add(self, picture: Image.Image, stamp: Fraction) -> None:
        """Writes one more frame.

        Args:
            picture: RGB.
            stamp: when it is shown, seconds after the first one.

        Raises:
            OutputError: the encoder failed.
            OSError: the file cannot be written.
        """
        if (picture.height, picture.width) != self._size:
            self.fitted += 1
            picture = self._fitted(picture)
        pixels = np.asarray(picture)
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        # Times that do not grow, of a broken video, would be refused.
        self._last = max(self._last + 1, round(stamp / self._unit))
        frame.pts, frame.time_base = self._last, self._unit
        self._encode(frame)

    def finish(self) -> None:
        """Writes what the encoder still holds, and the end of the file. Errors as of `add`."""
        try:
            self._encode(None)
        finally:
            try:
                self._container.close()
            except av.FFmpegError as error:
                raise self._failed(error) from None

    def _encode(self, frame: Optional[av.VideoFrame]) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except av.FFmpegError as error:
            raise self._failed(error) from None

    def _fitted(self, picture: Image.Image) -> Image.Image:
        height, width = self._size
        scale = min(height / picture.height, width / picture.width)
        inner = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        fitted = Image.new("RGB", (width, height))
        fitted.paste(picture.resize(inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return fitted

    def _failed(self, error: Exception) -> OutputError:
        height, width = self._size
        return OutputError(f"cannot write {self._name}, {width}x{height} as {self.codec}: {reason(error)}")


def codec_name() -> str:
    """The best encoder that there is.

    Raises:
        OutputError: there is none.
    """
    for name in CODECS:
        try:
            av.Codec(name, "w")
        except UnknownCodecError:
            continue
        return name
    raise OutputError(f"this ffmpeg has no encoder of {', '.join(CODECS)}; run: pip install --force-reinstall av")
