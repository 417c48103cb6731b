"""The documents are true: each command parses, each option exists, and what can run offline runs.

A `console` block holds commands, each behind `$ `. The Python of a page is one program, block after block. What is parsed or
type-checked but not run stands in a table here, with the reason.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from detr_export.benchmarks.speed import targets
from detr_export.runtimes import limits
from detr_export.runtimes.mask_head import mask_head_file
from tests.runtimes.video.drawn import pictures, write_video

if sys.version_info >= (3, 11):
    import tomllib
else:
    pytest.skip("reads pyproject.toml with tomllib, which came with Python 3.11", allow_module_level=True)

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAX_WORDS = 900  # of the README

APPLICATIONS = {"detr-export": "detr_export.cli", "detr-bench": "detr_export.benchmarks.command"}

# Commands that are only parsed: a pattern, and the reason.
PARSED_ONLY = {
    r"facebook/": "reads the hub",
    r"^detr-export predict structure\.onnx\b": "needs Table Transformer's weights",
    r"^detr-export predict rtx\.engine\b": "needs a GPU",
    r"^detr-export predict \S+ (0|rtsp://\S+) ": "needs a camera",
    r"2017": "reads COCO",
    r"^detr-export trt\b": "builds on a GPU",
    r"^detr-export train\b|^torchrun\b|--images 10000\b": "takes hours; tests/detr_export/training trains",
    r"\bcoins\b": "tests/test_cookbook.py runs the page, all of it",
    r"^detr-export verify\b": "takes a minute; tests/test_cli.py verifies a smaller file",
    r"^detr-export onnx\b": "takes a minute each; the fixture `demo_file` runs one of them, for all",
    r"--engine ray\b": "starts Ray; tests/runtimes/distributed does",
    r"^detr-export serve\b": "runs until it is stopped; tests/runtimes/serving starts it",
    r"^detr-bench\b": "takes minutes; tests/benchmarks measures",
    r"--install-completion": "writes into the home folder",
}
# The one export that is run, and what makes it quick. `make demo` runs it whole.
EXPORT, QUICK = "detr-export onnx --with-attentions -o demo/model.onnx", ("--no-verify", "--no-simplify")
# How other commands become shorter: a pattern, and what stands in its place.
SHORTER = {r"--images \d+": "--images 16", r"^(detr-export evaluate .*)$": r"\1 --limit 2"}
# Where pages expect the exported file.
MODELS = ("detr.onnx", "model.onnx", "demo/model.onnx")
# Pages whose Python is only type-checked, and the reason.
TYPED_ONLY = {
    "docs/tensorrt.md": "needs a GPU",
    "docs/export.md": "exports once more",
    "docs/predict.md": "needs Table Transformer's weights",
    "docs/migration.md": "reads the hub; tests/test_migration.py runs it",
    "docs/scale.md": "reads the table of a run on Ray",
}


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str  # relative to the repository
    text: str  # on one line, without `$ ` and comment

    @property
    def words(self) -> list[str]:
        """As the shell splits it."""
        return shlex.split(self.text)

    @property
    def parsed_only(self) -> bool:
        return any(re.search(pattern, self.text) for pattern in PARSED_ONLY)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def blocks(page: Path, language: str) -> list[str]:
    """The text of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page, in its order."""
    for block in blocks(page, "console"):
        lines = block.replace("\\\n", " ").splitlines()
        for line in lines:
            if line.startswith("$ "):
                yield Command(relative(page), shlex.join(shlex.split(line[2:], comments=True)))


COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if re.search(r"\bdetr-(export|bench)\b(?!\[)", command.text)]


def identify(command: Command) -> str:
    return f"{command.page}: {command.text}"


# ---- the command lines --------------------------------------------------------------------------------------------------


def application(program: str) -> tuple[typer.Typer, Callable[[], None]]:
    """The typer application behind an entry point, and the entry point itself."""
    module, _, function = PROJECT["scripts"][program].partition(":")
    start = getattr(importlib.import_module(module), function)
    loaded = importlib.import_module(APPLICATIONS[program])  # the entry point imports it only when it runs
    found = [value for value in vars(loaded).values() if isinstance(value, typer.Typer) and value.info.name == program]
    assert len(found) == 1, f"{loaded.__name__} has {len(found)} applications named {program}"
    return found[0], start


def silent(callback: Callable[..., Any]) -> Callable[..., None]:
    """A command that is parsed as the given one, and does nothing."""

    @functools.wraps(callback)
    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    return nothing


def options(command: Any) -> set[str]:
    """The long names of a command's options, without `--help`."""
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in names if name.startswith("--")} - {"--help"}


@functools.cache
def real_options() -> dict[str, set[str]]:
    """What can be typed: the options of `detr-export`, `detr-export onnx`, and so on."""
    found = {}
    for program in PROJECT["scripts"]:
        group: Any = typer.main.get_command(application(program)[0])
        found[program] = options(group)
        found |= {f"{program} {name}": options(command) for name, command in group.commands.items()}
    return found


@pytest.mark.parametrize("command", OURS, ids=identify)
def test_commands_parse(command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """By the real command line: each command, option and argument exists, and each value is one that it takes."""
    words = command.words
    start = next(index for index, word in enumerate(words) if word in PROJECT["scripts"])  # behind torchrun
    program, arguments = words[start], words[start + 1 :]
    if arguments[:1] == ["--install-completion"]:  # it would be done on the spot
        return
    monkeypatch.setenv(limits.VARIABLE, "")
    monkeypatch.setattr(limits, "_current", limits.current())
    app, main = application(program)
    for registered in app.registered_commands:
        assert registered.callback is not None
        monkeypatch.setattr(registered, "callback", silent(registered.callback))
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capfd.readouterr().err


def test_a_wrong_command_does_not_parse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Or the test above would pass on a command line that takes anything."""
    for text in ("detr-export onnx --no-such-option", "detr-export onnx --opset 3", "detr-export nothing"):
        with pytest.raises(AssertionError):
            test_commands_parse(Command("", text), monkeypatch, capfd)


def test_other_commands_exist() -> None:
    made = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in COMMANDS:
        if command in OURS:
            continue
        program, first, *_ = command.words
        assert program in ("make", "pip"), f"{identify(command)}: no test knows {program}"
        assert program != "make" or first in made, identify(command)
    for page in (*PAGES, ROOT / ".ci" / "run", ROOT / "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", text, re.MULTILINE)) <= made, relative(page)
        for extras in re.findall(r"detr-export\[([a-z,]+)\]", text):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), f"{relative(page)}: {extras}"


# ---- options ------------------------------------------------------------------------------------------------------------


def documented_options() -> dict[str, set[str]]:
    """The options in the tables whose head names a command."""
    found: dict[str, set[str]] = {}
    table = re.compile(r"^\|([^|]*`detr-(?:export|bench)[^|]*)\|.*\n\|---.*\n((?:\|.*\n?)+)", re.MULTILINE)
    for page in PAGES:
        for head, rows in table.findall(page.read_text(encoding="utf-8")):
            first_cells = " ".join(row.split("|")[1] for row in rows.splitlines())
            for name in re.findall(r"`([^`]+)`", head):
                assert name not in found, f"{relative(page)} has a second table of {name}"
                found[name] = set(re.findall(r"--[a-z0-9][a-z0-9-]*", first_cells))
    return found


def test_every_command_has_a_table() -> None:
    assert set(documented_options()) == set(real_options())


@pytest.mark.parametrize("name", sorted(real_options()))
def test_tables_have_all_options_and_no_others(name: str) -> None:
    assert documented_options().get(name, set()) == real_options()[name]


def test_all_backends_of_detr_bench_are_in_its_table() -> None:
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([a-z0-9-]+):(?:CHECKPOINT|FILE)", text)) == set(targets.BACKENDS)


# ---- running ------------------------------------------------------------------------------------------------------------


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `detr-export` in a folder."""
    assert words[0] == "detr-export"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "detr_export", *words[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def demo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint, exported by a command of the documents."""
    assert any(command.text == EXPORT for command in OURS), f"no page has: {EXPORT}"
    folder = tmp_path_factory.mktemp("docs")
    done = run([*shlex.split(EXPORT), *QUICK], folder)
    assert done.returncode == 0, done.stderr
    return folder / "demo" / "model.onnx"


@pytest.fixture
def folder(demo_file: Path, tmp_path: Path) -> Path:
    """A folder with what the pages take for granted: the exported file and some pictures."""
    for name in MODELS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(demo_file, tmp_path / name)
        shutil.copyfile(mask_head_file(demo_file), mask_head_file(tmp_path / name))
    gradient = Image.linear_gradient("L").convert("RGB")
    for name, size in {"a.jpg": (96, 64), "b.jpg": (64, 80), "photos/street.jpg": (96, 72), "more/c.jpg": (64, 64)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        gradient.resize(size).save(tmp_path / name)
    write_video(tmp_path / "street.mp4", pictures(3))
    return tmp_path


def commands_to_run() -> Iterator[Command]:
    """Each command that runs, once."""
    seen = set()
    for command in OURS:
        if not command.parsed_only and command.text not in seen:
            seen.add(command.text)
            yield command


RUN = list(commands_to_run())


@pytest.mark.parametrize("page", sorted({command.page for command in RUN}))
def test_commands_run(page: str, folder: Path) -> None:
    """In the order of the page, in one folder. What an earlier page has is not run again."""
    for command in RUN:
        if command.page != page:
            continue
        text = command.text
        for pattern, shorter in SHORTER.items():
            text = re.sub(pattern, shorter, text)
        done = run(shlex.split(text), folder)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        written = re.search(r"(?:-o|--output) (\S+)", text)
        assert written is None or (folder / written[1]).exists(), text


@pytest.mark.parametrize("pattern", PARSED_ONLY)
def test_the_table_of_what_is_not_run_has_no_leftovers(pattern: str) -> None:
    assert any(re.search(pattern, command.text) for command in OURS)


# ---- Python -------------------------------------------------------------------------------------------------------------

PROGRAMS = {relative(page): "\n".join(blocks(page, "python")) for page in PAGES if blocks(page, "python")}


def test_python_passes_mypy(tmp_path: Path) -> None:
    files = {}
    for page, program in PROGRAMS.items():
        file = tmp_path / (re.sub(r"\W", "_", page) + ".py")
        file.write_text(program, encoding="utf-8")
        files[file.name] = page
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--no-color-output", "--hide-error-context"]
    command = [sys.executable, "-m", "mypy", *settings, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    # What is wrong elsewhere is for `make lint` to say.
    wrong = [line for line in done.stdout.splitlines() if any(f"{name}:" in line for name in files)]
    assert not wrong, textwrap.indent("\n".join(wrong), "    ")
    assert "Success" in done.stdout or "Found" in done.stdout, done.stdout


@pytest.mark.parametrize("page", sorted(set(PROGRAMS) - set(TYPED_ONLY)))
def test_python_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(PROGRAMS[page], page, "exec"), {"__name__": page})


# ---- the pages themselves -----------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What can stand behind `#` in a link to a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{relative(page)}: {target}"
        assert not anchor or anchor in anchors(file), f"{relative(page)}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MAX_WORDS


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_no_page_names_a_machine(page: Path) -> None:
    assert not re.search(r"pypi\.org|(?<![\w.])/(?:home|tmp|work|opt|root)/", page.read_text(encoding="utf-8"))
