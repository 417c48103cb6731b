"""With `--json`, an error is one JSON document on stdout, and still one line on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image

from detr_export import cli, signals
from detr_export.benchmarks import command as bench
from detr_export.runtimes.errors import CheckpointError, DatasetError, DetrError, VerificationError
from detr_export.terminal import print_json, reports_errors
from tests.hostile.commands import run

FAILING = [
    (("inspect", "nope.onnx"), "ArtifactError", "nope.onnx does not exist"),
    (("inspect", "text.onnx"), "ArtifactError", "text.onnx"),
    (("inspect", "folder"), "ArtifactError", "folder"),
    (("onnx", "nope", "-o", "a.onnx"), "CheckpointError", "nope"),
    (("onnx", "folder", "-o", "a.onnx"), "CheckpointError", "folder"),
    (("onnx", "demo", "-o", "text.onnx"), "OutputError", "text.onnx exists; add --overwrite"),
    (("onnx", "demo", "-o", "a.txt"), "OutputError", "a.txt does not end in .onnx"),
    (("onnx", "demo", "-o", "text.onnx/a.onnx"), "OutputError", "cannot write to text.onnx"),
    (("verify", "nope.onnx"), "ArtifactError", "nope.onnx"),
    (("predict", "nope.onnx", "a.png"), "ArtifactError", "nope.onnx"),
    (("predict", "text.onnx", "nope.png"), "ImageError", "nope.png"),
    (("predict", "demo", "a.png", "--device", "tpu"), "BackendError", "tpu"),
    (("evaluate", "demo", "--images", "nope", "--annotations", "nope.json"), "AnnotationError", "nope"),
    (("train", "--data", "nope", "-o", "out"), "AnnotationError", "nope"),
    (("train", "--resume", "-o", "folder"), "InputError", "there is no run to resume"),
    (("trt", "nope.onnx", "-o", "a.engine", "--rtx"), "ArtifactError", "nope.onnx"),
    (("demo-data", "text.onnx", "--images", "1"), "OutputError", "text.onnx"),
    (("serve", "nope.onnx", "--host", "no host"), "InputError", "no address"),
]
WRONG = [
    (("nope",), "No such command 'nope'"),
    (("inspect",), "Missing argument 'MODEL'"),
    (("inspect", "a", "b"), "unexpected extra argument"),
    (("inspect", "a", "--nope"), "No such option: --nope"),
    (("onnx", "--opset", "x"), "Invalid value for '--opset'"),
    (("onnx", "--opset", "3"), "Invalid value for '--opset'"),
    (("onnx", "--bgr"), "--bgr, --top-k and --resize go with --end-to-end"),
    (("predict", "a"), "Missing argument 'IMAGES...'"),
    (("predict", "a", "b", "--threshold", "2"), "Invalid value for '--threshold'"),
    (("train", "-o", "b", "--task", "c"), "Invalid value for '--task'"),
    (("--limit", "nope=1", "inspect", "a"), "there is no limit 'nope'"),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")


def document(out: str) -> dict[str, str]:
    """The error of a document, which must be all that stdout has."""
    found = json.loads(out)
    assert list(found) == ["error"]
    assert sorted(found["error"]) == ["kind", "message"]
    return found["error"]


@pytest.mark.parametrize(("arguments", "kind", "message"), FAILING, ids=lambda item: str(item))
def test_errors(arguments: tuple[str, ...], kind: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, *arguments, "--json")
    error = document(done.out)
    assert done.code == 1
    assert error["kind"] == kind
    assert message in error["message"]
    assert done.errors == [f"error: {error['message']}"]
    # Without --json stdout stays empty, and stderr is the same.
    without = run(capsys, *arguments)
    assert (without.code, without.out, without.errors) == (1, "", done.errors)


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda item: str(item))
def test_wrong_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, *arguments, "--json")
    error = document(done.out)
    assert (done.code, error["kind"]) == (2, "UsageError")
    assert message in error["message"]
    assert "Usage:" in done.err
    without = run(capsys, *arguments)
    assert (without.code, without.out) == (2, "")


@pytest.mark.parametrize("arguments", [("--rounds", "0"), ("nope.onnx",), ("nope:demo",)])
def test_errors_of_detr_bench(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, *arguments, "--json", program="detr-bench")
    assert done.code == 1
    assert done.errors == [f"error: {document(done.out)['message']}"]


@pytest.mark.parametrize("arguments", [("--rounds", "x"), ("gpu", "--nope"), ("processors", "x")])
def test_wrong_usage_of_detr_bench(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, *arguments, "--json", program="detr-bench")
    assert (done.code, document(done.out)["kind"]) == (2, "UsageError")


def fail(error: BaseException, capsys: pytest.CaptureFixture[str], before: object = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command with `--json` that raises an error."""

    @reports_errors
    def command(as_json: bool) -> None:
        if before is not None:
            print_json(before)
        raise error

    with pytest.raises(typer.Exit) as exit_:
        command(as_json=True)
    printed = capsys.readouterr()
    return exit_.value.exit_code, printed.out, printed.err


@pytest.fixture(autouse=True)
def _nothing_printed_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_export.terminal._Printed.document", False)


@pytest.mark.parametrize(
    ("error", "kind", "message", "line"),
    [
        (CheckpointError("two\nlines"), "CheckpointError", "two lines", "error: two lines\n"),
        (DatasetError("two\nlines"), "DatasetError", "two\nlines", "error: two\nlines\n"),
        (OSError(28, "No space left on device", "a"), "OSError", "No space left on device: a", None),
        (PermissionError(13, "Permission denied", "a", None, "b"), "PermissionError", "Permission denied: a: b", None),
        (DetrError(""), "DetrError", "DetrError", None),
        (KeyboardInterrupt(), "Interrupted", "interrupted", "interrupted\n"),
    ],
)
def test_kinds(error: BaseException, kind: str, message: str, line: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = fail(error, capsys)
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert document(out) == {"kind": kind, "message": message}
    assert err == (line or f"error: {message}\n")


def test_what_was_printed_stays_the_only_document(capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison that fails has its result on stdout already."""
    code, out, err = fail(VerificationError("too far"), capsys, before={"passed": False})
    assert (code, json.loads(out), err) == (1, {"passed": False}, "error: too far\n")


def test_another_process_of_torchrun_prints_no_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert fail(DetrError("no"), capsys) == (1, "", "error: no\n")


def test_a_signal_has_its_own_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a library made another error of it."""
    monkeypatch.setattr(signals._seen, "number", 15)
    for error in (KeyboardInterrupt(), DetrError("a library failed")):
        code, out, err = fail(error, capsys)
        assert (code, document(out)["kind"], err) == (143, "Interrupted", "interrupted\n")
        monkeypatch.setattr("detr_export.terminal._Printed.document", False)


@pytest.mark.parametrize("module", [cli, bench])
def test_all_commands_have_json(module: object) -> None:
    group = typer.main.get_command(module.app)  # type: ignore[attr-defined]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert any("--json" in parameter.opts for parameter in command.params), name
