"""How large things may be that a file, a request or an address asks for: one number each, and how to raise it.

The numbers are far above every published DETR, so that who meets one has a damaged or a hostile file before them. They are
checked before memory is taken. `detr-export --limit queries=20000 ...` raises one for a command and all processes that it
starts; `raise_limits` does so in Python; the environment variable `DETR_EXPORT_LIMITS` does so everywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace

from detr_export.runtimes.errors import DetrError, InputError

VARIABLE = "DETR_EXPORT_LIMITS"  # NAME=N, several with spaces between them


@dataclass(frozen=True)
class Limits:
    """The limits; docs/limits.md lists them with what they protect."""

    document_bytes: int = 64 * 2**20  # of a JSON document: a configuration, metadata, a sidecar, a report
    annotation_bytes: int = 4 * 2**30  # of a file of annotations; COCO's largest has 0.5 GB
    nesting: int = 64  # objects and lists inside each other, in a JSON document
    labels: int = 100_000  # classes of a model
    queries: int = 10_000  # of a model
    layers: int = 1_000  # of an encoder, of a decoder, and of a stage of a backbone
    channels: int = 65_536  # of a layer
    tensors: int = 100_000  # of a checkpoint
    checkpoint_bytes: int = 64 * 2**30  # of a checkpoint's tensors, in float32
    pixels: int = 89_478_485  # of a picture or mask; where Pillow begins to warn of decompression bombs
    edge: int = 65_535  # height or width of what an image is resized or padded to, in pixels
    batch_pixels: int = 1 << 30  # of a whole padded batch
    points: int = 1_000_000  # of the polygons of one annotation
    outline: int = 4_000_000  # length of these polygons' edges together, in pixels: each takes 80 bytes to draw
    pages: int = 10_000  # of a TIFF, or frames of an animation, when all of them are asked for
    download_bytes: int = 64 * 2**20  # of a picture from the web


_current = Limits()


def current() -> Limits:
    """The limits that hold now."""
    return _current


def raise_limits(**values: int) -> None:
    """Sets limits for this process, and for those that it starts from now on.

    Args:
        values: a new number for each name of a limit, 1 or more. It may also be lower than before.

    Raises:
        InputError: there is no such limit, or its number is no positive integer.
    """
    global _current
    names = [item.name for item in fields(Limits)]
    for name, value in values.items():
        if name not in names:
            raise InputError(f"there is no limit {name!r}; expected one of {', '.join(names)}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
            raise InputError(f"the limit {name} is {value!r}; expected an integer of 1 or more")
    _current = replace(_current, **values)
    changed = [f"{name}={getattr(_current, name)}" for name in names if getattr(_current, name) != getattr(Limits, name)]
    os.environ[VARIABLE] = " ".join(changed)


def raise_limits_from(text: str) -> None:
    """`raise_limits` for text: `queries=20000`, several with spaces between them.

    Raises:
        InputError: it is not of that form, or as there.
    """
    values = {}
    for item in text.split():
        name, equals, number = item.partition("=")
        if not equals or not number.isascii() or not number.isdigit() or len(number) > 19:
            raise InputError(f"the limit {item!r:.80} is not of the form NAME=N, such as queries=20000")
        values[name] = int(number)
    raise_limits(**values)


def require_at_most(limit: str, value: int, what: str, kind: type[DetrError]) -> None:
    """Refuses a number above a limit.

    Args:
        limit: its name.
        value: what was found.
        what: what that is, for the message: file and field.
        kind: the error to raise.

    Raises:
        kind: the number is too large.
    """
    allowed = getattr(_current, limit)
    if value > allowed:
        found = value if value < 10**18 else "more than 10^18"
        raise kind(f"{what} is {found}; expected at most {allowed}; if it is right, add --limit {limit}=N")


def _read_environment() -> None:
    if os.environ.get(VARIABLE):
        raise_limits_from(os.environ[VARIABLE])


_read_environment()
