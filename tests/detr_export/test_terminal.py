"""What the two command lines share: errors in one line, and progress that fits where it is shown."""

from __future__ import annotations

import io
import sys

import pytest
import typer

from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.progress import Progress
from detr_export.terminal import TerminalProgress, reports_errors


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (DetrError("two\nlines"), 1, "error: two lines\n"),
        (OSError("disk full"), 1, "error: disk full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors
    def command() -> None:
        raise raised

    with pytest.raises(typer.Exit) as exit_of:
        command()
    assert exit_of.value.exit_code == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", line)


@pytest.mark.parametrize("raised", [BrokenPipeError(), ValueError("a bug")])
def test_what_is_not_an_error_of_the_project_passes(raised: Exception) -> None:
    @reports_errors
    def command() -> None:
        raise raised

    with pytest.raises(type(raised)):
        command()


def work(progress: Progress) -> None:
    progress.stage("reading")
    progress.step(1, 4, "first")
    progress.stage("verifying")
    progress.step(4, 4)


def test_without_a_terminal_only_the_stages_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress() as progress:
        work(progress)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "  reading\n  verifying\n")


def test_on_a_terminal_a_bar_is_there_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with TerminalProgress("working") as progress:
        work(progress)
        assert progress._bar.n == progress._bar.total == 4
    shown = terminal.getvalue()
    assert "  reading\n" in shown
    assert "  verifying\n" in shown
    assert "first" in shown
    assert shown.endswith("\r")  # the bar is gone


def test_on_a_terminal_without_tqdm_only_the_stages_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with TerminalProgress() as progress:
        work(progress)
    assert terminal.getvalue() == "  reading\n  verifying\n"


def test_an_error_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with TerminalProgress() as progress:
        progress.error(DetrError("one"))
        progress.step(1, 2)
        progress.error(DetrError("two\nlines"))
    shown = terminal.getvalue()
    assert shown.startswith("error: one\n")
    assert "\rerror: two lines\n" in shown.replace(" " * 10, "").replace("\r\r", "\r")
