"""What the two command lines share: how they print results, errors and progress, and the options that both have.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error of the kind `DetrError`, 2 wrong usage,
130 interrupted.

Annotations stay unquoted here: on Python 3.9 typer does not resolve the strings that `from __future__ import annotations`
makes of them, and every option would lose its name and its help.
"""

import functools
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Optional, Protocol

import typer

from detr_export.runtimes.errors import DatasetError, DetrError
from detr_export.runtimes.limits import raise_limits_from


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a `DetrError` into one line on stderr and exit code 1, and Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output has left; typer knows what to do
            raise
        except (DetrError, OSError) as error:  # an OSError: a name that is too long, a disk that fails
            print_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


def print_error(error: Exception) -> None:
    """Print an error on stderr: as one line, but a `DatasetError` as the lines that it has."""
    typer.echo(_error_text(error), err=True)


def _error_text(error: Exception) -> str:
    lines = str(error).splitlines() if isinstance(error, DatasetError) else [" ".join(str(error).split())]
    return "\n".join([f"error: {lines[0]}", *lines[1:]])


def print_note(text: str) -> None:
    """Print what a user should know, but did not ask for, on stderr."""
    typer.echo(f"note: {text}", err=True)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2))


def spell_lists(arguments: Sequence[str], values: Mapping[str, re.Pattern[str]]) -> list[str]:
    """What was typed, with `--option A B` spelled `--option A --option B`, which is what typer reads.

    Args:
        arguments: of the command.
        values: the options that take several values, and what these look like. No other argument may look so: a list ends
            where something else stands.
    """
    spelled: list[str] = []
    option = None
    for argument in arguments:
        if option and len(spelled) >= 2 and spelled[-2] == option and values[option].fullmatch(argument):
            spelled.append(option)
        elif argument in values:
            option = argument
        spelled.append(argument)
    return spelled


class Result(Protocol):
    """What a command found."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

    def summary(self) -> str:
        """For people."""


def print_result(found: Result, as_json: bool) -> None:
    """Print a result on stdout, for people or as one JSON document."""
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.summary())


def show_version(wanted: bool) -> None:
    """What `--version` calls."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"detr-export {version('detr-export')}")
        raise typer.Exit


def _set_limits(wanted: Optional[list[str]]) -> Optional[list[str]]:
    """What `--limit` calls."""
    try:
        raise_limits_from(" ".join(wanted or ()))
    except DetrError as error:
        raise typer.BadParameter(str(error)) from None
    return wanted


def tolerate_any_name() -> None:
    """Let stdout and stderr print every file name: a name need not be text in the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


VersionOption = Annotated[
    bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
]
LimitOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--limit",
        metavar="NAME=N",
        callback=_set_limits,
        help="Allow more of something: queries=20000. It stands before the command, and can be given several times.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
ThreadsOption = Annotated[
    Optional[int],
    typer.Option(min=1, help="CPU threads of one run, no more than there are cores; the backend's default if left out."),
]


class TerminalProgress:
    """`Progress` on stderr: a line for each stage and, on a terminal where tqdm is installed, a bar for its steps.

    Use it as a context manager: leaving it removes the bar.
    """

    def __init__(self, title: str = "") -> None:
        """The title stands before the bar until a step brings a note of its own."""
        self._title = title
        self._bar: Any = None  # tqdm's, made by the first step

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def stage(self, line: str) -> None:
        """Print an indented line, above the bar if there is one."""
        if self._bar is None:
            typer.echo(f"  {line}", err=True)
        else:
            self._bar.write(f"  {line}", file=sys.stderr)

    def error(self, error: Exception) -> None:
        """Print an error as `print_error` does, above the bar if there is one."""
        if self._bar is None:
            print_error(error)
        else:
            self._bar.write(_error_text(error), file=sys.stderr)

    def step(self, done: int, total: int, note: str = "") -> None:
        """Move the bar. The first call makes it, if stderr is a terminal and tqdm is installed."""
        if self._bar is None:
            if not sys.stderr.isatty():
                return
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, leave=False)
        self._bar.total = total
        self._bar.set_description_str(note or self._title, refresh=False)
        self._bar.update(done - self._bar.n)
