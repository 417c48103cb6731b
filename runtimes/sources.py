"""What `detr-export predict` is given: files, folders, globs, addresses on the web, and one picture on stdin."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Optional, Union
from urllib.parse import unquote, urlsplit

from PIL import Image

from detr_export.runtimes.counts import most_frequent
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.fetching import fetch, is_address
from detr_export.runtimes.grouping import Size, size_of_file
from detr_export.runtimes.limits import current
from detr_export.runtimes.processing.image_paths import VIDEO_SUFFIXES, expand_glob, list_folder, missing, no_pictures
from detr_export.runtimes.processing.pages import count_pages, load_page

STDIN = "-"
_LONGEST_NAME = 100  # characters of an address that become the name of a file


@dataclass(frozen=True)
class Source:
    """One picture to predict on."""

    image: Union[Path, str]  # the file, the address, or "-"
    file: str  # what results call it: a file of a folder by its path in that folder, everything else as it was named
    place: Path  # of its drawn copy below an output folder, without suffix
    page: Optional[int] = None  # which one, from 1, of a file of several pages
    content: Optional[bytes] = field(default=None, repr=False)  # what stdin held
    allow_truncated: bool = False  # whether a file that was cut short is taken as far as it goes
    allow_http: bool = False  # whether an address may be of another machine without https

    @property
    def title(self) -> str:
        """What lines for people call it."""
        return f"{self.image}" if self.page is None else f"{self.image}#{self.page}"

    def load(self) -> tuple[Image.Image, bool]:
        """The upright RGB picture, and whether its file has pages that nobody asked for.

        Raises:
            ImageError: it cannot be fetched or read.
        """
        if isinstance(self.image, Path):
            file: Union[Path, bytes] = self.image
        else:
            file = fetch(self.image, allow_http=self.allow_http) if self.content is None else self.content
        picture, several = load_page(file, self.title, self.page or 1, self.allow_truncated)
        return picture, several and self.page is None

    def size(self) -> Optional[Size]:
        """(height, width) off the header of a file; None for what is not read yet, and for what is no picture."""
        return size_of_file(self.image, self.page or 1) if isinstance(self.image, Path) else None


@dataclass(frozen=True)
class Sources:
    """All pictures to predict on."""

    pictures: tuple[Source, ...]
    skipped: Counter[str]  # files of the folders that are no pictures, by suffix; "" for none

    def note(self) -> Optional[str]:
        """What was skipped, in one line; None if nothing was."""
        if not self.skipped:
            return None
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in most_frequent(self.skipped))
        hint = "; name videos to predict on them" if VIDEO_SUFFIXES & set(self.skipped) else ""
        return f"skipped {_files(sum(self.skipped.values()))} that Pillow does not read: {kinds}{hint}"


def source_of(path: Path) -> Source:
    """The source for a file that was named."""
    return Source(path, str(path), Path(path.stem))


def find_sources(
    given: Iterable[str],
    output: Optional[Path] = None,
    all_frames: bool = False,
    stdin: Optional[BinaryIO] = None,
    allow_truncated: bool = False,
    allow_http: bool = False,
) -> Sources:
    """Finds the pictures that were named, each once, in the order in which they were named; those of a folder are sorted.

    Args:
        given: files, folders (with all folders below them), globs, addresses on the web, and `-`. A file that is named is
            always tried; those of a folder are known by their suffixes.
        output: a folder for results, which is passed over where it lies in one of the folders.
        all_frames: whether each page of a file is a picture. Else the first one is.
        stdin: is read for `-`.
        allow_truncated: whether files that were cut short are taken as far as they go; else reading one raises.
        allow_http: whether addresses on other machines may begin with http://.

    Raises:
        ImageError: something does not exist, a folder or glob has no pictures, or `all_frames` goes with an address, whose
            pages are not known before it is fetched.
    """
    found: dict[str, Source] = {}
    skipped: Counter[str] = Counter()
    for text in given:
        for source in _expanded(text, output, stdin, skipped):
            key = os.path.abspath(source.image) if isinstance(source.image, Path) else source.image
            found.setdefault(key, source)
    if not found:
        raise ImageError("no images were named: expected at least one file, folder, glob or address; add one")
    pictures = [
        replace(source, allow_truncated=allow_truncated, allow_http=allow_http) for source in _with_own_names(found.values())
    ]
    if all_frames:
        pictures = [page for source in pictures for page in _pages(source)]
    return Sources(tuple(pictures), skipped)


def pages_note(files: int) -> Optional[str]:
    """One line about files whose first page was taken; None if there are none."""
    if not files:
        return None
    has = "has" if files == 1 else "have"
    return f"{_files(files)} {has} more pages or frames than the first one; add --all-frames to predict on them, too"


def _expanded(text: str, output: Optional[Path], stdin: Optional[BinaryIO], skipped: Counter[str]) -> Iterator[Source]:
    if text == STDIN:
        most = current().download_bytes
        content = b"" if stdin is None else stdin.read(most + 1)
        if len(content) > most:
            raise ImageError(f"stdin holds more than {most / 2**20:g} MiB; expected one picture; name a file instead")
        yield Source(STDIN, STDIN, Path("stdin"), content=content)
    elif is_address(text):
        yield Source(text, text, Path(name_of_address(text)))
    elif os.path.isfile(text):
        yield source_of(Path(text))
    elif os.path.isdir(text):
        listing = list_folder(text, output)
        skipped.update(listing.others)
        if not listing.pictures:
            raise no_pictures(text, listing.others)
        for path in listing.pictures:
            inside = path.relative_to(text)
            yield Source(path, inside.as_posix(), inside.with_suffix(""))
    elif glob.has_magic(text):
        yield from (source_of(path) for path in expand_glob(text))
    else:
        raise missing(text)


def _with_own_names(sources: Iterable[Source]) -> Iterator[Source]:
    """Two folders may hold pictures of one name: results call the later one by its whole path."""
    taken: set[str] = set()
    for source in sources:
        names = (source.file, str(source.image), os.path.abspath(source.image))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield replace(source, file=name)


def _pages(source: Source) -> Iterator[Source]:
    if isinstance(source.image, str) and source.content is None:
        raise ImageError(
            f"--all-frames is for files, and {source.image} is an address; download it first, or leave the option out"
        )
    pages = count_pages(source.image if source.content is None else source.content, source.title)
    if pages == 1:
        yield source
        return
    for page in range(1, pages + 1):
        place = source.place.with_name(f"{source.place.name}.page{page}")
        yield replace(source, file=f"{source.file}#{page}", place=place, page=page)


def name_of_address(address: str) -> str:
    """A name for what is drawn of an address."""
    try:
        parts = urlsplit(address)
    except ValueError:  # fetching it says what is wrong
        return "picture"
    name = PurePosixPath(unquote(parts.path)).stem
    return re.sub(r"[^\w.-]", "_", name)[:_LONGEST_NAME].lstrip(".") or re.sub(r"[^\w.-]", "_", parts.netloc) or "picture"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
