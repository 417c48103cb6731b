"""How the drawn coins look: metal, relief and shadow, on tables of wood, cloth, stone or paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

_COPPER, _SILVER, _GOLD = (170, 92, 58), (176, 180, 186), (206, 162, 62)
_METALS = {1: (_COPPER, _COPPER), 2: (_SILVER, _SILVER), 3: (_GOLD, _GOLD), 4: (_SILVER, _GOLD)}  # by class: ring, middle
_TWO_METALS = 4
_MIDDLE = 0.64  # radius of the middle of a coin of two metals, in radii of the coin
_MARGIN = 1.5  # radii around a coin's centre in which it, or its shadow, changes a pixel
_RELIEF = 0.13  # how much a slope of the relief brightens or darkens the metal


@dataclass(frozen=True)
class PlacedCoin:
    """A coin in a picture."""

    label: int  # id of its class
    x: float  # of its centre, pixels from the left
    y: float  # from the top
    radius: float  # half its width, pixels


@dataclass(frozen=True)
class Light:
    """One lamp and its colour."""

    x: float  # direction from which it comes, in the picture; a unit vector
    y: float
    color: np.ndarray  # (3,) of white paper, about 1
    hardness: float  # 0 to 1, of shadows and highlights


def paint_coins(
    generator: np.random.Generator, coins: tuple[PlacedCoin, ...], width: int, height: int, tilt: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paints a table and the coins on it, a later one over an earlier one.

    Args:
        generator: of all that is random in the picture.
        coins: where they lie.
        width, height: of the picture, pixels.
        tilt: height of a coin divided by its width.

    Returns:
        Pixels, uint8 (height, width, 3) RGB; and int32 (height, width), the number from 1 of the coin that is seen at the
        centre of each pixel, 0 for the table.
    """
    angle = generator.uniform(0, 2 * np.pi)
    warmth = generator.uniform(-0.12, 0.12)
    light = Light(
        float(np.cos(angle)), float(np.sin(angle)), np.array([1 + warmth, 1, 1 - warmth]), generator.uniform(0.2, 1)
    )
    table = _TABLES[generator.integers(len(_TABLES))]
    canvas = table(generator, height, width)
    ids = np.zeros((height, width), dtype=np.int32)
    for number, coin in enumerate(coins, start=1):
        _add(generator, canvas, ids, number, coin, light, tilt)

    # The lamp is nearer to one side of the table, and the lens is darker in the corners and not quite sharp.
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    brightness = np.exp(generator.uniform(-0.35, 0.15) + generator.uniform(0, 0.3) * (light.x * x + light.y * y))
    brightness *= 1 - generator.uniform(0, 0.16) * (x**2 + y**2)
    lit = (canvas * brightness[..., None] * light.color).clip(0, 255)
    blurred = Image.fromarray(lit.astype(np.uint8)).filter(ImageFilter.GaussianBlur(generator.uniform(0, 0.9)))
    noisy = np.asarray(blurred) + generator.normal(0, generator.uniform(1, 8), canvas.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), ids


def _add(
    generator: np.random.Generator,
    canvas: np.ndarray,
    ids: np.ndarray,
    number: int,
    coin: PlacedCoin,
    light: Light,
    tilt: float,
) -> None:
    """Paints one coin with its shadow into the canvas, float64 (height, width, 3), and its number into `ids`."""
    # The window that changes, and where its pixels' centres are: in radii of the coin, on the untilted table.
    reach = _MARGIN * coin.radius
    left, top = max(0, int(coin.x - reach)), max(0, int(coin.y - reach))
    window = np.s_[top : int(coin.y + reach) + 1, left : int(coin.x + reach) + 1]
    rows, columns = ids[window].shape
    x, y = np.meshgrid(np.arange(columns) + left + 0.5, np.arange(rows) + top + 0.5)
    u, v = (x - coin.x) / coin.radius, (y - coin.y) / (coin.radius * tilt)
    distance = np.hypot(u, v)

    # The shadow falls away from the lamp.
    offset, softness = 0.06 + 0.1 * light.hardness, 0.24 - 0.15 * light.hardness
    from_shadow = np.hypot(u + offset * light.x, v + offset * light.y)
    shadow = 0.55 * np.clip((1 + softness - from_shadow) / (2 * softness), 0, 1)
    canvas[window] *= 1 - shadow[..., None]

    # The coin.
    metal = _metal(generator, coin, u, v, light)
    cover = np.clip((1 - distance) * coin.radius + 0.5, 0, 1)[..., None]  # a smooth edge, one pixel wide
    canvas[window] = canvas[window] * (1 - cover) + metal * cover
    ids[window][distance <= 1] = number


def _metal(generator: np.random.Generator, coin: PlacedCoin, u: np.ndarray, v: np.ndarray, light: Light) -> np.ndarray:
    """Float64 (rows, columns, 3): a coin's face at the points (u, v), which are in radii from its centre."""
    distance, angle = np.hypot(u, v), np.arctan2(v, u)

    # Its colour: worn, stained, of one or two metals.
    wear = np.exp(generator.normal(0, 0.09)) * (1 + generator.normal(0, 0.03, 3))
    ring, middle = (np.array(color) * wear for color in _METALS[coin.label])
    color = np.where((distance < _MIDDLE)[..., None], middle, ring)
    stains = _smooth_noise(generator, u.shape[0], u.shape[1], 5)
    color = color * (1 + 0.06 * stains[..., None])

    # Its relief: a rim, a ring of beads, a figure in the middle; and a groove between two metals.
    turned = angle + generator.uniform(0, 2 * np.pi)
    beads = generator.integers(18, 40)
    relief = 1.3 * _step(distance - 0.9, 0.03)
    relief += 0.6 * np.exp(-(((distance - 0.8) / 0.04) ** 2)) * (0.5 + 0.5 * np.cos(beads * turned))
    figure = _FIGURES[generator.integers(len(_FIGURES))]
    relief += figure(generator, distance, turned)
    if coin.label == _TWO_METALS:
        relief -= np.exp(-(((distance - _MIDDLE) / 0.03) ** 2))
    slope_y, slope_x = (slope * coin.radius / 12 for slope in np.gradient(relief))
    shade = 1 - _RELIEF * (slope_x * light.x + slope_y * light.y) * (4 + 4 * light.hardness)

    # Turned metal shines along two opposite rays from its centre.
    toward = np.arctan2(light.y, light.x)
    shine = np.cos(angle - toward - generator.normal(0, 0.4)) ** 2 - 0.5
    shade += (0.16 + 0.2 * light.hardness) * shine * np.clip(distance, 0, 1)
    return color * shade.clip(0.3, 1.7)[..., None]


def _step(value: np.ndarray, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 where the value passes 0."""
    return 0.5 + 0.5 * np.tanh(value / width)


def _star(generator: np.random.Generator, distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
    points = generator.integers(3, 8)
    return _step(generator.uniform(0.32, 0.42) + 0.13 * np.cos(points * angle) - distance, 0.03)


def _head(generator: np.random.Generator, distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
    x, y = distance * np.cos(angle), distance * np.sin(angle)
    skull = _step(0.26 - np.hypot(x - 0.04, 0.85 * (y + 0.16)), 0.03)
    nose = _step(0.09 - np.hypot(x + 0.24, y + 0.1), 0.03)
    shoulders = _step(0.34 - np.hypot(0.8 * x, y - 0.5), 0.03) * _step(0.66 - distance, 0.02)
    return np.maximum(np.maximum(skull, 0.8 * nose), shoulders) + 0.15 * np.sin(generator.uniform(25, 40) * y) * skull


def _columns(generator: np.random.Generator, distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
    x, y = distance * np.cos(angle), distance * np.sin(angle)
    pillars = _step(np.cos(generator.uniform(16, 24) * x), 0.3) * _step(0.28 - abs(y), 0.02) * _step(0.45 - abs(x), 0.02)
    roof = _step(0.16 - abs(y + 0.4) - 0.3 * abs(x), 0.02) * _step(0.5 - abs(x), 0.02)
    return np.maximum(pillars, roof)


_FIGURES = (_star, _head, _columns)


# ---- tables -------------------------------------------------------------------------------------------------------------


def _wood(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Boards with a grain, lengthwise or across."""
    across = generator.random() < 0.3
    rows, columns = (width, height) if across else (height, width)
    y = np.arange(rows)[:, None] / min(height, width)
    grain = y * generator.uniform(9, 16) + 0.9 * _smooth_noise(generator, rows, columns, 3)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * grain)
    fibres = np.repeat(generator.normal(0, 1, (rows, -(-columns // 24))), 24, axis=1)[:, :columns]
    boards = generator.integers(1, 5)
    board = (y * min(height, width) / rows * boards).astype(int)
    tone = np.exp(generator.normal(0, 0.08, boards + 1))[board]
    dark = np.exp(generator.uniform(-0.75, 0.1))
    color = np.array((168, 118, 74)) * dark * (1 + generator.normal(0, 0.05, 3))
    brightness = tone * (0.9 + 0.14 * rings + 0.035 * fibres)
    brightness[1:] *= np.where(np.diff(board, axis=0) > 0, 0.5, 1)  # the gap between two boards
    painted = color * np.broadcast_to(brightness, (rows, columns))[..., None]
    return painted.transpose(1, 0, 2).copy() if across else painted


def _cloth(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A weave of any dull colour, with soft folds."""
    y, x = np.mgrid[:height, :width]
    step = generator.uniform(2.4, 5)
    weave = np.sin(2 * np.pi * x / step) * np.sin(2 * np.pi * y / step)
    folds = _smooth_noise(generator, height, width, 4)
    color = generator.uniform(40, 200) * (1 + generator.uniform(-0.3, 0.3, 3))
    return color * (1 + 0.1 * weave + 0.07 * folds)[..., None]


def _stone(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Grey with veins and grains."""
    clouds = _smooth_noise(generator, height, width, 5) + 0.5 * _smooth_noise(generator, height, width, 14)
    veins = np.exp(-((_smooth_noise(generator, height, width, 5) / 0.08) ** 2))
    grains = _smooth_noise(generator, height, width, min(height, width) // 2)
    color = np.array((1, 0.98, 0.95)) * generator.uniform(60, 215) * (1 + generator.normal(0, 0.03, 3))
    return color * (1 + 0.06 * clouds - 0.2 * veins + 0.035 * grains)[..., None]


def _paper(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """White or tinted, in some pictures with ruled lines."""
    color = generator.uniform(185, 240) * (1 + generator.normal(0, 0.05, 3))
    canvas = color * (1 + 0.012 * _smooth_noise(generator, height, width, 40))[..., None]
    if generator.random() < 0.6:
        step, line = generator.integers(14, 34), generator.uniform(0.6, 0.9, 3)
        canvas[generator.integers(step) :: step] *= line
        if generator.random() < 0.5:
            canvas[:, generator.integers(step) :: step] *= line
    return canvas


_TABLES = (_wood, _cloth, _stone, _paper)


def _smooth_noise(generator: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Float32 (height, width), about unit normal, with bumps the size of a cell, of which there are so many on each side."""
    coarse = Image.fromarray(generator.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
