"""Finds a font that has the characters of a text: Pillow's own, which has ASCII, or one of this system."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional, Union

from PIL import ImageFont

Font = Union[ImageFont.ImageFont, ImageFont.FreeTypeFont]

_SUFFIXES = (".ttf", ".otf", ".ttc")
_NO_CHARACTER = "\U0010ffff"  # no font has it, so it looks like all that a font lacks
_ASCII = "Aa09."  # stands for all of ASCII
_PROBE_SIZE = 16  # pixels; large enough to tell characters from the sign for a missing one
_ODD_STYLES = ("bold", "italic", "oblique", "mono", "serif", "condensed", "light", "black", "thin", "math")
_PLACEHOLDERS = "lastresort"  # in the name of a font that draws a sign for each script

_log = logging.getLogger(__name__)


def font_of(text: str, size: int) -> Font:
    """A font that has all characters of a text. Where this system has none, that is logged once, as a warning.

    Args:
        text: what will be drawn.
        size: of the font, pixels. Pillow before 10.1 has its own font in one size only.
    """
    odd = frozenset(character for character in text if not character.isascii())
    if not odd:
        return _own(size)
    file = _file_with(odd)
    if file is None:
        _say_once(odd)
        return _own(size)
    return ImageFont.truetype(str(file), size)


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
def _say_once(characters: frozenset[str]) -> None:
    text = "".join(sorted(characters))
    _log.warning("no font of this system has all of %s: names are drawn with boxes; install one, such as Noto Sans", text)
