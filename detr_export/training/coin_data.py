"""Pictures of coins on a table with exact boxes and outlines: four classes, as in a small data set of somebody's own.

Coins differ in colour and size: copper, silver, gold, and a large one of two metals. The camera's height and tilt, the
table, the light and the noise differ from picture to picture. Coins may lie on others a little, and the border may cut them
off. What is annotated is what can be seen. Picture i of a split depends on nothing but the split's name and i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detr_export.training.coin_painting import PlacedCoin, paint_coins
from detr_export.training.drawn_split import AnnotatedPicture, DrawnData, picture_generator

CLASSES = {1: "copper", 2: "silver", 3: "gold", 4: "bimetal"}

_RADII = {1: 0.78, 2: 0.9, 3: 1.03, 4: 1.2}  # of each class, relative to the picture's unit
_UNITS = (0.09, 0.145)  # the unit, in shorter sides of the picture
_LONG_SIDES = (320, 400)  # pixels
_ASPECT_RATIO = 4 / 3  # long side / short side
_UPRIGHT = 0.2  # probability that the long side is the height
_TILTS = (0.82, 1.0)  # height of a coin divided by its width, as the camera sees it
_COINS = (2, 8)
_OUTSIDE = 0.25  # share of the radius that the border may cut off
# Distance of two centres, in sums of their radii. With these sizes of coins, its square is then more than the sum of the
# squared radii, so a ray from one centre that enters the other coin does not leave it again inside its own.
_LEAST_DISTANCE = 0.85
_CLUSTERED = 0.4  # probability that a coin is put against another one
_PLACING_ATTEMPTS = 200  # after that a coin is left out: the picture is full
_CORNERS = 72  # of an outline


@dataclass(frozen=True)
class CoinPicture:
    """One picture and the coins in it."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB
    ids: np.ndarray  # (height, width) int32, number of the coin that is seen, from 1; 0 = the table
    coins: tuple[PlacedCoin, ...]  # a later one lies on an earlier one
    tilt: float  # height of a coin divided by its width


def draw_picture(split: str, index: int) -> CoinPicture:
    """Draws picture `index` of a split; the same for the same arguments."""
    generator = picture_generator(split, index)
    long_side = int(generator.integers(*_LONG_SIDES, endpoint=True))
    width, height = long_side, round(long_side / _ASPECT_RATIO)
    if generator.random() < _UPRIGHT:
        width, height = height, width
    tilt = float(generator.uniform(*_TILTS))
    coins = _place(generator, width, height, tilt)
    pixels, ids = paint_coins(generator, coins, width, height, tilt)
    return CoinPicture(pixels, ids, coins, tilt)


def _place(generator: np.random.Generator, width: int, height: int, tilt: float) -> tuple[PlacedCoin, ...]:
    unit = generator.uniform(*_UNITS) * min(width, height)
    coins: list[PlacedCoin] = []
    for _ in range(generator.integers(*_COINS, endpoint=True)):
        label = int(generator.integers(1, len(CLASSES), endpoint=True))
        radius = float(unit * _RADII[label] * generator.uniform(0.97, 1.03))
        room = np.array([radius, radius * tilt]) * (1 - _OUTSIDE)
        for _ in range(_PLACING_ATTEMPTS):
            if coins and generator.random() < _CLUSTERED:
                other = coins[generator.integers(len(coins))]
                angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(_LEAST_DISTANCE, 1.05)
                step = distance * (radius + other.radius) * np.array([np.cos(angle), np.sin(angle) * tilt])
                center = np.array([other.x, other.y]) + step
            else:
                center = generator.uniform(room, (width, height) - room)
            coin = PlacedCoin(label, float(center[0]), float(center[1]), radius)
            inside = (center >= room).all() and (center <= (width, height) - room).all()
            if inside and all(_distance(coin, other, tilt) >= _LEAST_DISTANCE for other in coins):
                coins.append(coin)
                break
    return tuple(coins)


def _distance(first: PlacedCoin, second: PlacedCoin, tilt: float) -> float:
    """Between two centres on the table, in sums of the radii."""
    return float(np.hypot(first.x - second.x, (first.y - second.y) / tilt) / (first.radius + second.radius))


def outline(picture: CoinPicture, number: int) -> np.ndarray:
    """The visible part of a coin as a polygon.

    Args:
        picture: as drawn.
        number: of the coin, from 1.

    Returns:
        float64 (N, 2): corners (x, y) in pixels; the border of the picture and coins that lie on this one cut it off.
    """
    coin = picture.coins[number - 1]
    height, width = picture.ids.shape
    angles = 2 * np.pi * np.arange(_CORNERS) / _CORNERS
    rays = np.stack(
        [np.cos(angles), np.sin(angles) * picture.tilt], axis=1
    )  # a pixel of the coin's width long, on the table
    lengths = np.full(_CORNERS, coin.radius)

    # Where each ray enters a coin that lies on this one: the nearer solution of a quadratic equation, on the untilted table.
    flat = rays / (1, picture.tilt)
    for other in picture.coins[number:]:
        to_other = np.array([other.x - coin.x, (other.y - coin.y) / picture.tilt])
        along = flat @ to_other
        under_root = along**2 - to_other @ to_other + other.radius**2
        entry = along - np.sqrt(np.maximum(under_root, 0))
        lengths = np.where((under_root > 0) & (along > 0), np.minimum(lengths, entry), lengths)
    return (rays * lengths[:, None] + (coin.x, coin.y)).clip(0, (width, height))


def _annotated_picture(split: str, index: int) -> AnnotatedPicture:
    picture = draw_picture(split, index)
    numbers = range(1, len(picture.coins) + 1)
    return AnnotatedPicture(picture.pixels, [_annotation(picture, number) for number in numbers], [])


def _annotation(picture: CoinPicture, number: int) -> dict[str, Any]:
    rows, columns = np.nonzero(picture.ids == number)
    x, y = int(columns.min()), int(rows.min())
    return {
        "category_id": picture.coins[number - 1].label,
        "area": len(rows),
        "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
        "iscrowd": 0,
        "segmentation": [outline(picture, number).round(2).ravel().tolist()],
    }


COINS = DrawnData(
    name="coins",
    description="Coins on a table, drawn by detr-export",
    categories=[{"id": id_, "name": name, "supercategory": "coins"} for id_, name in CLASSES.items()],
    panoptic_categories=None,
    draw=_annotated_picture,
)
