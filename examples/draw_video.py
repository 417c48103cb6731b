"""Draws a video of shapes that move in a landscape: discs, rectangles, triangles, stars and crosses, which `demo` knows.

python draw_video.py shapes.mp4 [SECONDS]
"""

import colorsys
import math
import sys
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, RATE = 320, 240, 15
LARGER = 3  # each frame is drawn so much larger, for smooth edges
STAR = [(1.15 if corner % 2 else 0.5) for corner in range(10)]
CROSS = [(1, 0.33), (0.33, 0.33), (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33)]
OUTLINES = {
    "disc": [(math.cos(turn / 10), math.sin(turn / 10)) for turn in range(63)],
    "rectangle": [(-0.85, -0.55), (0.85, -0.55), (0.85, 0.55), (-0.85, 0.55)],
    "triangle": [(1.15 * math.cos(turn), 1.15 * math.sin(turn)) for turn in (0, math.tau / 3, 2 * math.tau / 3)],
    "star": [(r * math.cos(i * math.tau / 10), r * math.sin(i * math.tau / 10)) for i, r in enumerate(STAR)],
    "cross": [*CROSS, *[(-x, -y) for x, y in CROSS]],
}


def landscape() -> Image.Image:
    """Sky above grass."""
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    sky = np.array([80, 130, 215]) * (1 - rows) + np.array([190, 215, 240]) * rows
    noise = np.random.default_rng(0).normal(0, 12, (HEIGHT, WIDTH, 1))
    picture = np.where(rows < 0.55, sky, np.array([70, 130, 45]) + noise)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize((WIDTH * LARGER, HEIGHT * LARGER))


def main(path: str, seconds: float = 30.0) -> None:
    background = landscape()
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(round(seconds * RATE)):
            frame = av.VideoFrame.from_image(draw(background, number / RATE))
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def draw(background: Image.Image, time: float) -> Image.Image:
    """The frame at a time: each shape goes round a centre of its own, turns, and is in sight for a part of the time."""
    picture = background.copy()
    for index, outline in enumerate(OUTLINES.values()):
        if (time + 4 * index) % 20 > 12:
            continue
        phase = time * (0.5 + 0.1 * index) + index * math.tau / 5
        middle = WIDTH * (0.5 + 0.33 * math.cos(phase)), HEIGHT * (0.5 + 0.3 * math.sin(phase))
        radius, turn = HEIGHT * (0.17 + 0.03 * math.sin(time + index)), time * (index - 2) / 3
        cos, sin = radius * math.cos(turn), radius * math.sin(turn)
        points = [(middle[0] + x * cos - y * sin, middle[1] + x * sin + y * cos) for x, y in outline]
        red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(index / 5, 0.8, 0.9))
        ImageDraw.Draw(picture).polygon([(x * LARGER, y * LARGER) for x, y in points], fill=(red, green, blue))
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], *map(float, sys.argv[2:]))
