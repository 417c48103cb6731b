"""Decodes the frames of one open video: upright RGB with exact times. What is damaged is left out and remembered."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional

import av
import numpy as np
from av.video.frame import VideoFrame as DecodedFrame

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.video.frame import VideoFrame, upright
from detr_export.runtimes.video.opening import OpenVideo, reason

_MATRIX = struct.Struct("=9i")
_USUAL_RATE = 25  # frames a second of a video that says nothing of its times


@dataclass(frozen=True)
class About:
    """What the header of a video says."""

    time_base: Fraction  # seconds; the times of all frames are multiples of it
    rate: Optional[Fraction]  # frames a second, on average
    frames: Optional[int]  # how many there are
    pixel_aspect: Fraction  # width of a pixel by its height, of the upright frame


@dataclass
class _Damage:
    """What could not be decoded, counted as it comes."""

    count: int = 0
    since: str = ""  # after which frame the first damage is
    reason: str = ""  # of the first damage
    at_end: bool = False  # whether nothing good was read after the last damage


class Decoder:
    """The frames of an open video, one after another.

    Args:
        video: what `opened` gives.
        title: for messages.
        live: whether damage is passed over without an error: on its way a stream loses parts of frames.
    """

    def __init__(self, video: OpenVideo, title: str, live: bool) -> None:
        stream = video.stream
        self._container, self._stream, self._missing = video.container, stream, video.missing
        self._title, self._live = title, live
        self._transport = "mpegts" in video.container.format.name
        rate = stream.average_rate or stream.guessed_rate
        self._step = 1 / Fraction(rate) if rate else Fraction(1, _USUAL_RATE)
        self._damage = _Damage()
        self._last: Optional[tuple[int, Fraction]] = None  # number and stamp of the last good frame
        self._shown: Optional[Fraction] = None  # when the last frame is shown, by the video's own clock
        self._moved = Fraction(0)  # seconds by which frames are later than the video says, since its times jumped back
        self.about = About(
            Fraction(stream.time_base or Fraction(1, 90_000)),
            Fraction(rate) if rate else None,
            stream.frames or self._frames_by_duration(),
            Fraction(stream.sample_aspect_ratio or 1),
        )

    @property
    def damaged(self) -> int:
        """How many frames or parts of frames could not be decoded."""
        return self._damage.count

    def frames(self) -> Iterator[VideoFrame]:
        """All frames, then the error if some of a file are missing.

        Raises:
            ImageError: the file is cut short or damaged, its frames are larger than the limit, or there are none.
        """
        number, first = 0, None
        for frame in self._decoded():
            if frame is not None and not frame.is_corrupt:
                stamp = self._stamp(frame)
                first = stamp if first is None else first
                self._last = number, stamp - first
                yield VideoFrame(number, stamp - first, self._pixels(frame))
            else:
                self._note("a frame is not complete")
            number += frame is not None
        if self._last is None and not self._live and not self._damage.count:
            raise ImageError(f"{self._title} has no frames; expected a whole video file")
        if not self._live:
            self._refuse_damage()

    def _decoded(self) -> Iterator[Optional[DecodedFrame]]:
        """Frames as the decoder gives them; None for each part that it cannot use."""
        for packet in self._packets():
            # A break in a transport stream marks packets that may be whole; there, the decoder says what is damaged.
            if packet is not None and packet.is_corrupt and not self._transport:
                self._damage.reason = self._damage.reason or "the file ends within a frame"
                yield None
                continue
            try:
                yield from self._stream.decode(packet)  # without a packet: what the decoder still holds
            except av.EOFError:
                continue
            except av.FFmpegError as error:
                self._damage.reason = self._damage.reason or reason(error)
                yield None

    def _packets(self) -> Iterator[Optional[av.Packet]]:
        held: Optional[av.Packet] = None
        try:
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                ready: Optional[av.Packet] = packet
                if self._transport and self._missing is not None:
                    ready, held = held, packet  # the last one has no end
                if ready is not None:
                    self._damage.at_end = False
                    yield ready
        except (av.FFmpegError, OSError) as error:
            if self._live:
                raise ImageError(f"{self._title}: {reason(error)}") from None
            self._note(reason(error))
        yield None
        if self._missing is not None:
            self._note(self._missing)

    def _note(self, why: str) -> None:
        damage = self._damage
        if not damage.count:
            damage.since = "before the first frame"
            if self._last is not None:
                damage.since = f"after frame {self._last[0]}, at {float(self._last[1]):.2f} s"
        damage.reason = damage.reason or why
        damage.count += 1
        damage.at_end = True

    def _refuse_damage(self) -> None:
        damage = self._damage
        if not damage.count:
            return
        if self._last is None:
            raise ImageError(
                f"{self._title} has no frame that can be decoded ({damage.reason}); expected a whole video file"
            )
        if damage.at_end:
            raise ImageError(
                f"{self._title} is cut short or damaged: its last frame is {self._last[0]}, at {float(self._last[1]):.2f} s "
                f"({damage.reason}); the frames up to there were used"
            )
        raise ImageError(
            f"{self._title} is damaged: {damage.count} of its frames or their parts cannot be decoded, the first one "
            f"{damage.since} ({damage.reason}); the others were used"
        )

    def _stamp(self, frame: DecodedFrame) -> Fraction:
        """When the frame is shown, seconds. One without a time, or with an earlier one than the last, follows the last one.

        Frames come in the order in which they are shown. Times jump back where recordings were joined.
        """
        following = Fraction(0) if self._shown is None else self._shown + self._step
        shown = following if frame.pts is None else frame.pts * self.about.time_base + self._moved
        if self._shown is not None and shown < self._shown:
            self._moved += following - shown
            shown = following
        self._shown = shown
        return shown

    def _pixels(self, frame: DecodedFrame) -> np.ndarray:
        require_at_most(
            "pixels", frame.width * frame.height, f"the number of pixels of a frame of {self._title}", ImageError
        )
        pixels: np.ndarray = frame.to_ndarray(format="rgb24")
        return upright(pixels, self._matrix(frame))

    def _matrix(self, frame: DecodedFrame) -> tuple[int, int, int, int]:
        found: Any = frame.side_data.get("DISPLAYMATRIX")
        if found is None:
            return 1, 0, 0, 1
        a, b, _, c, d, *_ = _MATRIX.unpack(bytes(found))
        signs = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
        if (bool(a), bool(b)) != (bool(d), bool(c)) or bool(a) == bool(b):
            raise ImageError(
                f"{self._title} is turned by another angle than 90, 180 or 270 degrees; turn it with another program first"
            )
        return signs[0], signs[1], signs[2], signs[3]

    def _frames_by_duration(self) -> Optional[int]:
        """About how many frames there are, for a bar."""
        if self._live or not self._container.duration:
            return None
        return max(1, round(Fraction(self._container.duration, av.time_base) / self._step))
