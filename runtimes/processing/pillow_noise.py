"""Keeps Pillow and the libraries in it from writing to the terminal: what matters of it becomes an `ImageError`.

Pillow warns of large pictures, of damaged EXIF and of odd tags in a TIFF, some of it by way of `logging`. What changes the
pixels is refused anyway. libtiff writes its errors to the file descriptor of stderr, past Python.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator

# Whose lines these are: the functions of libtiff, and the name under which Pillow opens a file in it.
_LIBTIFF = re.compile(
    rb"[\w.]*(TIFF|JPEG|LZW|ZIP|ZSTD|LZMA|WebP|Fax|PackBits|ThunderDecode|NeXT|SGILog|LogL|LogLuv|\.tif)\w*: "
)
_STDERR = 2
_lock = threading.RLock()  # a file descriptor belongs to the whole process


def silence_pillow() -> None:
    """Turns off the warnings and the log of Pillow in this process. An application with a handler still gets the log."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextlib.contextmanager
def without_libtiff_lines() -> Iterator[None]:
    """Leaves out what libtiff writes to stderr in the block; what others write meanwhile follows at its end."""
    with _lock:
        try:
            kept = os.dup(_STDERR)
        except OSError:  # there is no stderr
            yield
            return
        try:
            with tempfile.TemporaryFile() as lines:
                os.dup2(lines.fileno(), _STDERR)
                try:
                    yield
                finally:
                    os.dup2(kept, _STDERR)
                    lines.seek(0)
                    for line in lines:
                        if not _LIBTIFF.match(line):
                            os.write(_STDERR, line)
        finally:
            os.close(kept)
