"""Words and numbers for the cells of drawn tables."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import ImageFont

from detr_export.runtimes.errors import BackendError

_VOWELS, _CONSONANTS = "aeiou", "bcdfghklmnprstvw"


@functools.cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font in a size in pixels.

    Raises:
        BackendError: this Pillow has only one size.
    """
    try:
        font = ImageFont.load_default(size)
    except TypeError:
        font = None
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise BackendError(
            "drawing tables needs Pillow 10.1 or later, with FreeType; install it with: pip install -U pillow"
        )
    return font


def word(generator: np.random.Generator) -> str:
    """A made-up word of one to four syllables."""
    syllables = []
    for _ in range(generator.integers(1, 4, endpoint=True)):
        end = generator.choice(list(_CONSONANTS)) if generator.random() < 0.4 else ""
        syllables.append(f"{generator.choice(list(_CONSONANTS))}{generator.choice(list(_VOWELS))}{end}")
    return "".join(syllables)


def words(generator: np.random.Generator, fits: Callable[[str], bool], most: int) -> str:
    """Up to `most` words of which the first begins with a capital letter, or fewer, or less than one, so that they fit."""
    text = word(generator).capitalize()
    while text and not fits(text):
        text = text[:-1]
    for _ in range(most - 1):
        longer = f"{text} {word(generator)}"
        if not fits(longer):
            break
        text = longer
    return text


def number(generator: np.random.Generator, kind: int, fits: Callable[[str], bool]) -> str:
    """A number as tables have it, or less if it does not fit. Numbers of one kind look alike."""
    value = abs(generator.normal()) * 10.0 ** generator.integers(0, 3)
    texts = (
        f"{round(value)}",
        f"{value:.2f}",
        f"{value % 100:.1f}%",
        f"{round(value * 37):,}",
        f"{value:.1f} ({value / 9:.1f})",
        f"{value % 1:.3f}{'*' * int(generator.integers(0, 3))}",
        f"{value - 20:+.1f}",
    )
    text = texts[kind % len(texts)]
    return text if fits(text) else f"{round(value) % 100}"
