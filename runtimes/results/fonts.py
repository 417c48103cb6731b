"""Finds a font that has the characters of a text: Pillow's own, which has ASCII, or one of this system."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional, Union

from PIL import ImageFont, features

Font = Union[ImageFont.ImageFont, ImageFont.FreeTypeFont]

_SUFFIXES = (".ttf", ".otf", ".ttc")
_NO_CHARACTER = "\U0010ffff"  # no font has it, so it looks like all that a font lacks
_ASCII = "Aa09."  # stands for all of ASCII
_PROBE_SIZE = 16  # pixels; large enough to tell characters from the sign for a missing one
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # they choose between forms of the character before, and have none of their own
_ODD_STYLES = ("bold", "italic", "oblique", "mono", "serif", "condensed", "light", "black", "thin", "math")
_PLACEHOLDERS = "lastresort"  # in the name of a font that draws a sign for each script

_log = logging.getLogger(__name__)


def font_of(text: str, size: int) -> Font:
    """A font that has all characters of a text; Pillow's own where this system has none.

    Args:
        text: what will be drawn.
        size: of the font, pixels. Pillow before 10.1 has its own font in one size only.
    """
    odd = _odd(text)
    file = _file_with(odd) if odd else None
    return _own(size) if file is None else ImageFont.truetype(str(file), size)


def can_draw(text: str) -> bool:
    """Whether a text can be drawn so that it can be read. Where it cannot, that is logged once, as a warning.

    It cannot if no font has all its characters, or if Pillow cannot join and order the letters of its script.
    """
    odd = _odd(text)
    if not odd:
        return True
    if _file_with(odd) is None:
        _say_once(f"no font of this system has all of {_listed(odd)}", "a font that has them, such as one of Noto Sans")
        return False
    if any(map(_needs_shaping, odd)) and not features.check("raqm"):
        _say_once(f"Pillow does not join the letters of {_listed(odd)}", "FriBiDi (libfribidi), which Pillow loads for that")
        return False
    return True


def _odd(text: str) -> frozenset[str]:
    """The characters that Pillow's own font does not have, without those that nobody sees."""
    return frozenset(
        character
        for character in text
        if not character.isascii() and unicodedata.category(character) != "Cf" and ord(character) not in _VARIATION_SELECTORS
    )


def _needs_shaping(character: str) -> bool:
    """Whether a character is written from right to left, or is a sign that is put to a letter, as in Devanagari."""
    return unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character) in ("Mn", "Mc")


def _listed(characters: frozenset[str]) -> str:
    return "".join(sorted(characters))


@functools.lru_cache(maxsize=64)
def _own(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


@functools.lru_cache(maxsize=1024)
def _file_with(characters: frozenset[str]) -> Optional[Path]:
    """The plainest font file that has all the characters, and those of a score."""
    return next((file for file in _font_files() if _has(file, {*characters, *_ASCII})), None)


@functools.cache
def _font_files() -> tuple[Path, ...]:
    """All fonts of this system, those with a plain style first."""
    found = {file for folder in _folders() for file in _files_below(folder) if file.suffix.lower() in _SUFFIXES}
    named = [(file.name.lower(), file) for file in found]
    usable = [(sum(style in name for style in _ODD_STYLES), file) for name, file in named if _PLACEHOLDERS not in name]
    return tuple(file for _, file in sorted(usable))


def _folders() -> Iterator[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
    elif sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
    else:
        data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (home / ".local/share/fonts", home / ".fonts", *(Path(item) / "fonts" for item in data.split(":")))
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"  # DejaVu Sans


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _has(file: Path, characters: Iterable[str]) -> bool:
    """Whether a font draws each character as something else than a missing one. A file that is no font has none."""
    try:
        font = ImageFont.truetype(str(file), _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
        missing = _drawn(font, _NO_CHARACTER)
        return all(character.isspace() or _drawn(font, character) not in (missing, None) for character in characters)
    except OSError:
        return False


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> Optional[tuple[tuple[int, int], bytes]]:
    """Size and pixels of a character; None where there is nothing to see."""
    mask = font.getmask(character)
    pixels = bytes(mask)
    return (mask.size, pixels) if any(pixels) else None


@functools.cache
def _say_once(why: str, remedy: str) -> None:
    _log.warning("%s: a number, such as #3, stands for the name of the class; install %s", why, remedy)
