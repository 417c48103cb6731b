"""Videos that tests draw: small, quick to write, and with frames that all differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 10
UNIT = Fraction(1, 600)  # seconds
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".webm": "libvpx", ".avi": "mpeg4", ".mpg": "mpeg2video"}


def pictures(count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> list[np.ndarray]:
    """RGB pictures of blocks, (height, width)."""
    generator = np.random.default_rng(seed)
    height, width = size
    coarse = generator.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return [picture.repeat(8, axis=0).repeat(8, axis=1)[:height, :width] for picture in coarse]


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    times: Sequence[Fraction] | None = None,
    turned: float | None = None,
    mirrored: bool = False,
    sound: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video; the format is that of the suffix.

    Args:
        path: of the file.
        frames: RGB.
        times: of the frames, multiples of `UNIT`; by default `RATE` frames a second.
        turned, mirrored: how the display matrix turns the frames, in degrees, and whether it swaps left and right.
        sound: whether there is a stream of silence, too.
        options: of the format.
    """
    frames = list(frames)
    times = [Fraction(number, RATE) for number in range(len(frames))] if times is None else times
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(CODECS[path.suffix], rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p" if stream.height % 2 == stream.width % 2 == 0 else "yuv444p"
        if path.suffix in (".mp4", ".mkv"):
            stream.codec_context.time_base = UNIT
        stream.codec_context.thread_count = 1
        if turned is not None or mirrored:
            stream.set_display_rotation(turned or 0, hflip=mirrored)
        if sound:
            audio = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, 0
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round(time / UNIT), UNIT
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """The frames of a file as PyAV gives them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def shown_at(path: Path) -> list[Fraction]:
    """When the frames of a file are shown, seconds after the first one."""
    with av.open(str(path)) as container:
        found = [frame.pts * Fraction(frame.time_base) for frame in container.decode(video=0)]
    return [time - found[0] for time in found]
