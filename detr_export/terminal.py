"""What the two command lines share: how they print results, errors and progress, and the options that both have.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error of the kind `DetrError`, 2 wrong usage,
130 interrupted, 143 ended by SIGTERM. With `--json` an error is a document on stdout, too, unless the result is there.

Annotations stay unquoted here: on Python 3.9 typer does not resolve the strings that `from __future__ import annotations`
makes of them, and every option would lose its name and its help.
"""

import contextlib
import functools
import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Optional, Protocol

import typer
from typer.core import TyperGroup

from detr_export import signals
from detr_export.runtimes.errors import DatasetError, DetrError
from detr_export.runtimes.limits import raise_limits_from
from detr_export.runtimes.temporary import remove_all

_INTERRUPTED = "Interrupted"  # kind of the error document
_JSON = "--json"
# What libraries say of their own insides, and what nobody who runs a command can change.
_HARMLESS = re.compile(
    r"__array__ implementation doesn't accept a copy|is deprecated|will be removed|lazy modules|pin_memory|"
    r"TypedStorage|beta stage|experimental|not guaranteed to be stable"
)
_LONGEST_NOTE = 300  # characters

signals.LAST_ACTS.append(remove_all)


def run_command_line(app: Callable[..., None], program: str) -> NoReturn:
    """Runs an application of typer as a command: signals, streams and what libraries say are those of a command.

    Args:
        app: the application.
        program: its name, for which the shell asks for completions.

    Raises:
        SystemExit: always.
    """
    with signals.handled(), _noting_libraries():
        _Printed.document = _Printed.lines = False
        _tolerate_any_name()
        try:
            app(prog_name=program)
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except KeyboardInterrupt:  # before the command line was read
            code = _interrupted(_JSON in sys.argv).exit_code
        except OSError as error:  # the disk of stdout is full, and what was printed is no result: the help
            print_error(error)
            code = 1
        finally:
            remove_all()  # nothing is left but what a signal met between a name and its `with`
        sys.exit(_flushed(code))


class Commands(TyperGroup):
    """The commands of an application. Wrong usage and interruptions are reported as by `reports_errors`."""

    _wants_json = False

    def make_context(self, info_name: Optional[str], args: list[str], *rest: Any, **extra: Any) -> Any:
        self._wants_json = _JSON in args
        with self._reporting():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        with self._reporting():
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise _interrupted(self._wants_json) from None
        except Exception as error:
            explain = getattr(error, "format_message", None)  # of click's UsageError and its like, whoever's click it is
            if explain is not None and self._wants_json:
                _print_error_document("UsageError", explain())
            raise


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a `DetrError` into one line on stderr and exit code 1, and Ctrl-C into exit code 130.

    Where the command has an argument `as_json` and it is true, stdout gets a document of the error.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output has left; typer knows what to do
            raise
        except (DetrError, OSError) as error:  # an OSError: a name that is too long, a disk that fails
            if signals.received() or signals.interruption_in(error) is not None:  # a library made an error of it
                raise _interrupted(as_json) from None
            print_error(error)
            if as_json:
                _print_error_document(type(error).__name__, _error_text(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise _interrupted(as_json) from None

    return wrapped


def _interrupted(as_json: bool) -> typer.Exit:
    """Reports an interruption; returns what to raise."""
    _say("interrupted")
    if as_json:
        _print_error_document(_INTERRUPTED, "interrupted")
    return typer.Exit(signals.exit_code())


def print_error(error: Exception) -> None:
    """Print an error on stderr: as one line, but a `DatasetError` as the lines that it has."""
    _say(f"error: {_error_text(error)}")


def _error_text(error: Exception) -> str:
    if isinstance(error, DatasetError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return " ".join(": ".join([error.strerror, *places]).split())
    return " ".join(str(error).split()) or type(error).__name__


def _print_error_document(kind: str, message: str) -> None:
    """Print the document of an error on stdout. A result that was printed stays the only document."""
    if not _Printed.document and os.environ.get("RANK", "0") == "0":  # under torchrun the first process alone prints
        with contextlib.suppress(OSError):  # it may be what failed
            print_json({"error": {"kind": kind, "message": message}}, on_one_line=_Printed.lines)


class _Printed:
    """What this process has printed."""

    document = False  # whether stdout has its JSON document
    lines = False  # whether stdout has lines of JSON, of which an error is one more


def _say(line: str) -> None:
    """Print a line on stderr. Where that is closed or its disk is full, the work goes on."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(line, err=True)


def print_note(text: str) -> None:
    """Print what a user should know, but did not ask for, on stderr."""
    _say(f"note: {text}")


def print_json(document: Any, on_one_line: bool = False) -> None:
    """Print one JSON document on stdout."""
    _Printed.document = True
    typer.echo(json.dumps(document, indent=None if on_one_line else 2))


def print_json_line(document: Any) -> None:
    """Print one of many JSON documents on stdout, each on one line."""
    _Printed.lines = True
    typer.echo(json.dumps(document))


@contextlib.contextmanager
def _noting_libraries() -> Iterator[None]:
    """Turns what libraries warn of into notes, one for each text. Those who ask Python for warnings get them as they are."""
    if sys.warnoptions:
        yield
        return
    told: set[str] = set()

    def tell(text: str) -> None:
        line = " ".join(text.split())
        if line and line not in told and not _HARMLESS.search(line):
            told.add(line)
            print_note(line if len(line) <= _LONGEST_NOTE else f"{line[: _LONGEST_NOTE - 3]}...")

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Optional[str] = None) -> None:
        tell(str(message))

    def emit(handler: Any, record: logging.LogRecord) -> None:
        ours = record.name.partition(".")[0] == "detr_export"
        if ours or handler.stream not in (sys.stderr, sys.__stderr__):
            emitted(handler, record)
        else:
            tell(record.getMessage())

    def tell_of_thread(failed: Any) -> None:
        tell(f"a thread of a library ended: {failed.exc_type.__name__}: {failed.exc_value}")

    shown, emitted, excepted = warnings.showwarning, logging.StreamHandler.emit, threading.excepthook
    warnings.showwarning, threading.excepthook = show, tell_of_thread
    logging.StreamHandler.emit = emit  # type: ignore[method-assign, assignment]  # PyTorch and the hub have handlers of their own
    try:
        yield
    finally:
        warnings.showwarning, threading.excepthook = shown, excepted
        logging.StreamHandler.emit = emitted  # type: ignore[method-assign]


def _flushed(code: int) -> int:
    """The exit code, when all of stdout has been written. Python would tell in a traceback that it cannot."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if code == 0 and not isinstance(error, BrokenPipeError):
            print_error(error)
        with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
    return code


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


def _tolerate_any_name() -> None:
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

    def __init__(self, title: str = "", unit: str = "it") -> None:
        """The title stands before the bar until a step brings a note of its own. The unit is that of the steps."""
        self._title, self._unit = title, unit
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
            _say(f"  {line}")
        else:
            self._bar.write(f"  {line}", file=sys.stderr)

    def error(self, error: Exception) -> None:
        """Print an error as `print_error` does, above the bar if there is one."""
        if self._bar is None:
            print_error(error)
        else:
            self._bar.write(f"error: {_error_text(error)}", file=sys.stderr)

    def step(self, done: int, total: Optional[int], note: str = "") -> None:
        """Move the bar. The first call makes it, if stderr is a terminal and tqdm is installed. The total may be unknown."""
        if self._bar is None:
            if not sys.stderr.isatty():
                return
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, leave=False, unit=self._unit)
        self._bar.total = total
        self._bar.set_description_str(note or self._title, refresh=False)
        self._bar.update(done - self._bar.n)
