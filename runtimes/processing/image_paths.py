"""Finds image files: in folders and all folders below them, and by globs. What is a picture is known by its suffix."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from PIL import Image

from detr_export.runtimes.errors import ImageError

PathPattern = Union[str, os.PathLike]

# What Pillow only identifies, and what starts another program (EPS: Ghostscript), whatever the name of the file says.
_NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")

# What `detr-export predict` takes as a video. Pillow's own animations are pictures.
VIDEO_SUFFIXES = frozenset(
    (".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf")
) | {".ogv", ".ts", ".vob", ".webm", ".wmv"}


@dataclass(frozen=True)
class Listing:
    """What is in a folder and below it."""

    pictures: tuple[Path, ...]  # by their paths, folder for folder
    others: Counter[str]  # how many other files there are, by their suffix in lower case; "" for those without one


def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the files that this Pillow and its plug-ins read: `.jpg`, `.webp`, `.avif`, ..."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN and name not in _NOT_READ)


def read_formats() -> list[str]:
    """The names of the formats that are read."""
    Image.init()
    return [name for name in Image.ID if name not in _NOT_READ]


def list_folder(folder: PathPattern, leave_out: Optional[PathPattern] = None) -> Listing:
    """Lists a folder and the folders below it.

    Hidden files and folders are passed over. Links to folders are followed. A folder that can be reached in several ways is
    listed once, and by a link only if there is no other way, so a loop of links ends.

    Args:
        folder: where to begin.
        leave_out: a folder below it that is passed over, such as one for results.

    Raises:
        ImageError: a folder cannot be listed.
    """
    suffixes = image_suffixes()
    left_out = None if leave_out is None else os.path.realpath(leave_out)
    pictures: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = deque([os.fsdecode(folder)])
    while waiting:
        place = waiting.popleft()
        try:
            about = os.stat(place)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise ImageError(f"cannot list folder {place}: {error.strerror}; check its permissions") from error
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                continue
            if is_folder:
                if left_out is None or os.path.realpath(entry.path) != left_out:
                    (waiting.append if entry.is_symlink() else waiting.appendleft)(entry.path)
            elif is_file:
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in suffixes:
                    pictures.append(Path(entry.path))
                else:
                    others[suffix] += 1
    return Listing(tuple(sorted(pictures, key=lambda path: path.parts)), others)


def no_pictures(folder: PathPattern, others: Iterable[str] = ()) -> ImageError:
    """The error for a folder without pictures; `others` are the suffixes that it has."""
    videos = not VIDEO_SUFFIXES.isdisjoint(others)
    return ImageError(
        f"folder {os.fsdecode(folder)} contains no images: expected files that Pillow reads, such as .jpg, .png, .webp or "
        f".tiff; name another folder, or use a glob to take {'its videos or ' if videos else ''}files with other names"
    )


def expand_glob(pattern: str) -> list[Path]:
    """The files that a glob matches, sorted by name; `**` descends into folders.

    Raises:
        ImageError: there are none.
    """
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(match)]
    if not found:
        raise ImageError(f"glob {short(pattern)} matches no file: expected at least one image; check the pattern")
    return found


def iter_image_paths(patterns: Union[PathPattern, Iterable[PathPattern]]) -> list[Path]:
    """Expands files, folders and globs into paths, in the given order and each path once.

    A folder stands for the pictures in it and in all folders below it, as in `list_folder`. A glob stands for every file
    that it matches, sorted by name. An existing file is taken as it is, even if its name contains `*` or `[`. Two paths are
    the same if they are equal as absolute paths.

    Raises ImageError for a path that does not exist, and for a folder or glob without images.
    """
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    unique: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(os.fsdecode(pattern)):
            unique.setdefault(os.path.abspath(path), path)
    if not unique:
        raise ImageError("no images were named: expected at least one file, folder or glob; add one")
    return list(unique.values())


def _expand(pattern: str) -> list[Path]:
    if os.path.isfile(pattern):
        return [Path(pattern)]
    if os.path.isdir(pattern):
        found = [*list_folder(pattern).pictures]
        if not found:
            raise no_pictures(pattern)
        return found
    if glob.has_magic(pattern):
        return expand_glob(pattern)
    raise missing(pattern)


def missing(path: str) -> ImageError:
    """The error for a path that leads nowhere."""
    if path.startswith(("http://", "https://")):
        return ImageError(f"{short(path)} is a URL: expected a local file; download it and pass the file or its bytes")
    return ImageError(f"{short(path)} does not exist: expected an image file; check the path")


def short(text: str) -> str:
    """The start of a long string. What should be a path may be a whole base64 image."""
    return text if len(text) <= 200 else f"{text[:197]}..."
