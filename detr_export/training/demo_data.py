"""The demo's data: pictures of shapes in landscapes, with exact COCO detection and panoptic annotations.

Five kinds of things (disc, rectangle, triangle, star, cross) of varied size, colour, pattern and rotation overlap each other
and the border of the picture, in front of up to three of four kinds of stuff (sky, water, grass, sand) that meet in curved
lines. Every picture has its own aspect ratio, brightness and noise. Picture i of a split depends on nothing but the split's
name and i, so everybody gets the same pictures, and the first 100 of 500 are the same as 100 alone.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detr_export.runtimes.processing.rle import encode_compressed_rle
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.training.drawn_split import AnnotatedPicture, DrawnData, picture_generator, write_split

THINGS = {1: "disc", 2: "rectangle", 3: "triangle", 4: "star", 5: "cross"}
STUFF = {6: "sky", 7: "water", 8: "grass", 9: "sand"}

_AREA = 256 * 256  # pixels of a picture, about
_ASPECT_RATIOS = (0.7, 1.43)  # width / height
_THINGS_PER_PICTURE = (1, 5)
_DIAMETERS = (0.3, 0.65)  # of the shorter side
_LEAST_VISIBLE = 0.45  # share of a thing that must stay visible
_LEAST_STUFF = 0.02  # share of the picture; a smaller scrap of stuff belongs to no segment
_PLACING_ATTEMPTS = 12  # after that a thing is left out: the picture is full
# Each kind of thing has a hue of its own, which helps a small network: without it, tens of thousands of steps pass before it
# looks at shapes at all. The hues vary so much that some things can only be told apart by their shape.
_HUE_SPREAD = 0.06  # turns, a standard deviation; the five hues are 0.2 apart
_SUPERSAMPLING = 4  # for smooth edges

Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Picture:
    """One picture and what is in it."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB
    ids: np.ndarray  # (height, width) int32, segment ids from 1; 0 = no segment
    categories: dict[int, int]  # segment id to category id


def draw_picture(split: str, index: int) -> Picture:
    """Draws picture `index` of a split; the same for the same arguments."""
    # The size, and the landscape behind everything.
    generator = picture_generator(split, index)
    ratio = np.exp(generator.uniform(*np.log(_ASPECT_RATIOS)))
    height, width = round((_AREA / ratio) ** 0.5), round((_AREA * ratio) ** 0.5)
    canvas, stuff = _landscape(generator, height, width)

    # The things, each where it neither leaves the picture nor covers another one too far.
    things = np.zeros((height, width), dtype=np.int32)  # number of the thing on top, from 1
    labels: list[int] = []
    areas: list[int] = []  # of each thing when nothing lay on it
    for _ in range(generator.integers(*_THINGS_PER_PICTURE, endpoint=True)):
        for _ in range(_PLACING_ATTEMPTS):
            label = int(generator.integers(1, len(THINGS), endpoint=True))
            cover, whole = _shape(generator, label, height, width)
            mask = cover > 0.5
            left = np.bincount(things[~mask], minlength=len(labels) + 1)[1:]
            if mask.sum() >= 0.7 * whole and (left >= _LEAST_VISIBLE * np.array(areas)).all():
                break
        else:
            continue
        labels.append(label)
        areas.append(int(mask.sum()))
        things[mask] = len(labels)
        paint = _paint(generator, label, height, width)
        canvas = canvas * (1 - cover[..., None]) + paint * cover[..., None]

    # Brightness and noise.
    canvas = canvas * np.exp(generator.uniform(-0.25, 0.2)) + generator.normal(0, generator.uniform(2, 12), canvas.shape)

    # Segments: first the things, then the stuff that is still visible.
    categories = dict(enumerate(labels, start=1))
    ids = things.copy()
    for label in STUFF:
        region = (stuff == label) & (things == 0)
        if region.sum() >= _LEAST_STUFF * region.size:
            categories[len(categories) + 1] = label
            ids[region] = len(categories)
    return Picture(canvas.round().clip(0, 255).astype(np.uint8), ids, categories)


def write_demo_data(directory: str | Path, images: int, split: str = "train", progress: Progress = SILENT) -> Path:
    """Writes a split with its instances and panoptic annotations; arguments and errors as in `write_split`."""
    return write_split(directory, images, split, SHAPES, progress)


def _annotated_picture(split: str, index: int) -> AnnotatedPicture:
    picture = draw_picture(split, index)
    segments = _segments(picture)
    instances = [
        {**segment, "segmentation": encode_compressed_rle(picture.ids == segment["id"])}
        for segment in segments
        if segment["category_id"] in THINGS
    ]
    return AnnotatedPicture(picture.pixels, instances, segments, picture.ids)


def _segments(picture: Picture) -> list[dict[str, Any]]:
    segments = []
    for id_, label in picture.categories.items():
        rows, columns = np.nonzero(picture.ids == id_)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        segments.append({"id": id_, "category_id": label, "area": len(rows), "bbox": box, "iscrowd": 0})
    return segments


def _categories(names: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {"id": id_, "name": name, "supercategory": "thing" if id_ in THINGS else "stuff", "isthing": int(id_ in THINGS)}
        for id_, name in names.items()
    ]


# ---- stuff --------------------------------------------------------------------------------------------------------------


def _landscape(generator: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bands of stuff from top to bottom: colours float64 (height, width, 3) and category ids int32 (height, width)."""
    bands = int(generator.integers(1, 3, endpoint=True))
    below = generator.permutation([label for label in STUFF if STUFF[label] != "sky"])
    labels = [6, *below] if generator.random() < 0.8 else list(below)
    rows = np.arange(height)[:, None] / height
    columns = np.arange(width)[None] / width
    canvas = np.zeros((height, width, 3))
    stuff = np.zeros((height, width), dtype=np.int32)
    edges = np.linspace(0, 1, bands + 1)[:-1] + generator.uniform(-0.12, 0.12, bands)
    for position, (edge, label) in enumerate(zip(edges, labels, strict=False)):
        amplitude, waves, phase = generator.uniform(0.02, 0.09), generator.uniform(0.5, 2.5), generator.uniform(0, 2 * np.pi)
        border = edge + amplitude * np.sin(2 * np.pi * waves * columns + phase) if position else np.full_like(columns, -1.0)
        region = rows >= border
        canvas = np.where(region[..., None], _TEXTURES[int(label)](generator, rows, columns), canvas)
        stuff[region] = label
    return canvas, stuff


def _sky(generator: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A vertical gradient with soft clouds."""
    top, bottom = _near(generator, (80, 130, 215)), _near(generator, (190, 215, 240))
    color = top + (bottom - top) * (rows**0.8 + 0 * columns)[..., None]
    clouds = _smooth_noise(generator, rows.shape[0], columns.shape[1], 4)
    return color + 45 * np.clip(clouds, 0, 1.5)[..., None]


def _water(generator: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Horizontal waves on dark blue-green."""
    wave = np.sin(
        2 * np.pi * (generator.uniform(18, 32) * rows + 0.4 * np.sin(2 * np.pi * generator.uniform(2, 5) * columns))
    )
    return _near(generator, (25, 85, 125)) + 22 * wave[..., None]


def _grass(generator: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Green with fine, upright noise."""
    height, width = rows.shape[0], columns.shape[1]
    blades = np.repeat(generator.normal(0, 1, (-(-height // 4), width)), 4, axis=0)[:height]
    patches = _smooth_noise(generator, height, width, 6)
    return _near(generator, (70, 130, 45)) + np.multiply.outer(18 * blades + 14 * patches, (0.9, 1.0, 0.7))


def _sand(generator: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Slanted dunes on yellow-brown."""
    slant, ripples = generator.uniform(-0.7, 0.7), generator.uniform(9, 16)
    dunes = np.sin(
        2 * np.pi * ripples * (rows + slant * columns) + _smooth_noise(generator, rows.shape[0], columns.shape[1], 3)
    )
    return _near(generator, (205, 175, 115)) + 14 * dunes[..., None]


_TEXTURES = {6: _sky, 7: _water, 8: _grass, 9: _sand}


def _near(generator: np.random.Generator, color: tuple[int, int, int]) -> np.ndarray:
    return np.array(color) + generator.normal(0, 10, 3)


def _smooth_noise(generator: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Float32 (height, width), about unit normal, with bumps the size of a cell."""
    coarse = Image.fromarray(generator.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


# ---- things -------------------------------------------------------------------------------------------------------------


def _shape(generator: np.random.Generator, label: int, height: int, width: int) -> tuple[np.ndarray, float]:
    """A thing at a random place: how much of each pixel it covers, float64 (height, width) in [0, 1], and its whole area,
    with what the border cuts off."""
    radius = generator.uniform(*_DIAMETERS) * min(height, width) / 2
    center = generator.uniform(0, 1, 2) * (width, height)
    angle = generator.uniform(0, 2 * np.pi)
    stretch = generator.uniform(0.55, 1.0) if THINGS[label] == "rectangle" else generator.uniform(0.8, 1.0)
    points = _OUTLINES[label]() * (1, stretch) * radius
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = points @ rotation + center
    x, y = points.T
    whole = abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2  # the shoelace formula
    large = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    ImageDraw.Draw(large).polygon([tuple(point) for point in points * _SUPERSAMPLING], fill=255)
    return np.asarray(large.reduce(_SUPERSAMPLING)) / 255, whole


def _paint(generator: np.random.Generator, label: int, height: int, width: int) -> np.ndarray:
    """What a thing is painted with: one bright colour, lit from one side, in half of the cases striped with any other."""
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    angle = generator.uniform(0, 2 * np.pi)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    hue = (label - 1) / len(THINGS) + generator.normal(0, _HUE_SPREAD)
    first, second = (_color(generator, value) for value in (hue, generator.random()))
    stripes = np.sin(2 * np.pi * generator.uniform(6, 14) * along) > 0.5
    use_second = stripes & (generator.random() < 0.5)
    return np.where(use_second[..., None], second, first) + 40 * (along - along.mean())[..., None]


def _color(generator: np.random.Generator, hue: float) -> np.ndarray:
    """RGB, 0 to 255, of a hue in turns (0 is red, 1/3 green), at a random saturation and brightness."""
    rgb = colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.55, 1), generator.uniform(0.6, 1))
    return 255 * np.array(rgb)


def _regular(radii: list[float]) -> np.ndarray:
    """A closed outline around the origin with corners at equal angles, (N, 2)."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]


def _cross() -> np.ndarray:
    arm = 0.33
    quarter = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # rows times this: a quarter turn
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, times) for times in range(4)])


_OUTLINES: dict[int, Callable[[], np.ndarray]] = {
    1: lambda: _regular([1.0] * 64),
    2: lambda: np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    3: lambda: _regular([1.15] * 3),
    4: lambda: _regular([1.15, 0.5] * 5),
    5: _cross,
}

SHAPES = DrawnData(
    name="shapes",
    description="Shapes in landscapes, drawn by detr-export",
    categories=_categories(THINGS),
    panoptic_categories=_categories(THINGS | STUFF),
    draw=_annotated_picture,
)
