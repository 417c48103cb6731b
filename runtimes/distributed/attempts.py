"""Finds the picture on which processes crash. Ray gives its unit of work to the next process, which would crash, too.

A unit has a file as long as it runs; one that is there at the beginning tells of a process that has died. After some of
them, the file also gets the number of each picture before its turn comes, and a picture at which two have died is left out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detr_export.runtimes.files import make_folder, writing

FOLDER = "attempts"
READ, RUN = "read", "run"  # the stages
_TRY = "try"
_DEATHS = 2  # of processes with a unit, before its pictures are noted; and then with a picture, before it is left out


class Attempts:
    """The processes that have had a unit of work.

    Args:
        file: of the unit.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            lines = file.read_text(encoding="ascii").split()
        except FileNotFoundError:
            lines = []
        last = [line for line, following in zip(lines, [*lines[1:], _TRY]) if following == _TRY]
        self._deaths = Counter(int(line) for line in last if line != _TRY)
        self.noting = lines.count(_TRY) >= _DEATHS

    def crashed(self, number: int) -> bool:
        """Whether the picture with this number is to be left out."""
        return self._deaths[number] >= _DEATHS

    def at(self, number: int) -> None:
        """Notes that the turn of a picture has come, if that is to be noted."""
        if self.noting:
            self.add(str(number))

    def add(self, line: str) -> None:
        """Appends a line. Raises OutputError."""
        with writing(self._file), self._file.open("a", encoding="ascii") as file:
            file.write(f"{line}\n")


@contextmanager
def attempts(output: Path, stage: str, first: int) -> Iterator[Attempts]:
    """The attempts at a unit, of which the block is one more. An exception is none: it ends the whole run.

    Args:
        output: the folder of the run.
        stage: `READ` or `RUN`.
        first: number of the unit's first picture.

    Raises:
        OutputError: the file of the unit cannot be written.
    """
    make_folder(output / FOLDER)
    file = output / FOLDER / f"{stage}-{first:012d}"
    found = Attempts(file)
    found.add(_TRY)
    try:
        yield found
    finally:
        file.unlink(missing_ok=True)


def forget_attempts(output: Path) -> None:
    """Removes what an earlier start left: that it was killed is nothing to blame a picture for."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
