"""What docker/ says of the images agrees with the project. `make docker-check` builds and runs one."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from detr_export.runtimes.serving.options import ServerOptions
from tests import test_docs, test_packaging
from tests.test_docs import PROJECT, Command

ROOT = Path(__file__).parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
SERVE: dict[str, Any] = COMPOSE["services"]["serve"]


@functools.cache
def instructions(file: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile: its name, and the rest on one line."""
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last(file: Path, name: str) -> str:
    """The rest of the last instruction of that name: the one that counts."""
    return [rest for found, rest in instructions(file) if found == name][-1]


def flags(words: list[str]) -> dict[str, str]:
    """Values of options, where each has one."""
    return {name: value for name, value in itertools.pairwise(words) if name.startswith("--")}


def by_name(file: Path) -> str:
    return file.stem


def test_which_images_there_are() -> None:
    assert [file.stem for file in DOCKERFILES] == ["cpu", "cuda", "export"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=by_name)
def test_bases_are_pinned(file: Path) -> None:
    bases = [rest.split()[0] for name, rest in instructions(file) if name == "FROM"]
    assert len(set(bases)) == 1, "the virtual environment is made in one stage and used in the next"
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", bases[0])


@pytest.mark.parametrize("file", DOCKERFILES, ids=by_name)
def test_nothing_runs_as_root(file: Path) -> None:
    user = re.fullmatch(r"(\d+):(\d+)", last(file, "USER"))
    assert user is not None, "Kubernetes wants a number"
    assert int(user[1]) >= 1000
    names = [name for name, _ in instructions(file)]
    assert "RUN" not in names[names.index("USER") :]


@pytest.mark.parametrize("file", DOCKERFILES, ids=by_name)
def test_what_is_installed_exists(file: Path) -> None:
    (install,) = [rest for name, rest in instructions(file) if name == "RUN" and " install " in rest]
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", install)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert ("serve" in extras.split(",")) == (file.stem != "export")
    constraints = re.findall(r"--constraint (\S+)", install)
    assert constraints[0] == "constraints.txt"
    for name in constraints:
        assert in_context(name)
        lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.+]+", line) for line in lines)
    assert {"FROM", "COPY"} <= {name for name, _ in instructions(file)}


def test_the_versions_for_cuda_are_said_once() -> None:
    names = [
        {line.partition("==")[0] for line in (ROOT / name).read_text(encoding="utf-8").splitlines()[1:]}
        for name in ("constraints.txt", "docker/cuda.txt")
    ]
    assert not names[0] & names[1]
    assert "onnxruntime-gpu" in names[1]


@pytest.mark.parametrize("file", DOCKERFILES, ids=by_name)
def test_the_command_of_an_image_parses(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (program,) = json.loads(last(file, "ENTRYPOINT"))
    assert program in PROJECT["scripts"]
    words = json.loads(last(file, "CMD"))
    test_docs.test_commands_parse(Command("", shlex.join([program, *words])), monkeypatch, capfd)
    if file.stem != "export":
        port = flags(words)["--port"]
        assert flags(words)["--host"] == "0.0.0.0"  # that of the container
        assert last(file, "EXPOSE") == port
        assert f"http://127.0.0.1:{port}/health" in last(file, "HEALTHCHECK")


DOCUMENTED = [
    (page, image, words)
    for page in ("docker/README.md", "docs/serve.md")
    for image, words in re.findall(
        r"^docker run .*? detr-export:(\w+) ([^\n]+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
    )
]


def test_documents_show_commands() -> None:
    assert DOCUMENTED
    assert {image for _, image, _ in DOCUMENTED} <= {file.stem for file in DOCKERFILES}


@pytest.mark.parametrize("words", [words for _, _, words in DOCUMENTED])
def test_documented_commands_parse(words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    test_docs.test_commands_parse(Command("", f"detr-export {words}"), monkeypatch, capfd)


def test_the_command_of_compose_parses(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    test_docs.test_commands_parse(Command("", shlex.join(["detr-export", *SERVE["command"]])), monkeypatch, capfd)


def test_compose_agrees_with_the_image() -> None:
    file = ROOT / "docker" / SERVE["build"]["context"] / SERVE["build"]["dockerfile"]
    assert file.resolve() in DOCKERFILES
    given = flags(SERVE["command"])
    assert given["--port"] == last(file.resolve(), "EXPOSE")  # the health check asks there
    (published,) = SERVE["ports"]
    assert re.fullmatch(rf"127\.0\.0\.1:\d+:{given['--port']}", published)
    model = json.loads(last(file.resolve(), "CMD"))[1]
    assert SERVE["command"][1] == model
    (mount,) = SERVE["volumes"]
    assert (mount["target"], mount["read_only"]) == (str(Path(model).parent), True)


def test_compose_waits_for_the_grace() -> None:
    grace = float(flags(SERVE["command"])["--grace"])
    assert grace == ServerOptions().grace
    assert grace < float(SERVE["stop_grace_period"].removesuffix("s"))


def test_compose_gives_few_rights() -> None:
    assert SERVE["read_only"]
    assert SERVE["cap_drop"] == ["ALL"]
    assert SERVE["security_opt"] == ["no-new-privileges:true"]
    assert SERVE["mem_limit"] == SERVE["memswap_limit"]
    assert float(flags(SERVE["command"])["--max-memory"]) < float(SERVE["mem_limit"].removesuffix("g")) * 2**30
    assert SERVE["pids_limit"] > 0
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(SERVE)


# ---- .dockerignore ------------------------------------------------------------------------------------------------------


def in_context(name: str) -> bool:
    """Whether a path gets into the build, by the rules that our .dockerignore uses: the last pattern that fits decides."""
    inside = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = name.split("/")
        for end in range(1, len(parts) + 1):  # a pattern that fits a folder fits what is in it
            if matches("/".join(parts[:end]), pattern):
                inside = line.startswith("!")
    return inside


def matches(path: str, pattern: str) -> bool:
    """`*` stays in a folder, `**/` is any number of them."""
    if pattern.startswith("**/"):
        return fnmatch(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def test_the_whole_package_is_in_the_build() -> None:
    for room in test_packaging.ROOMS:
        for name in test_packaging.files_of(room, "*"):
            path = name if room == "detr_export" else name.removeprefix("detr_export/")
            assert in_context(path) or "__pycache__" in path, path
    for link in ("runtimes", "benchmarks", "cli.py"):
        assert (ROOT / "detr_export" / link).is_symlink()
        assert in_context(f"detr_export/{link}")
        assert in_context(link)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        assert in_context(name)


OUTSIDE = [
    ".git/config",
    ".venv/bin/python",
    "benchmarks/results/r50-cpu/report.json",
    "demo/model.onnx",
    "detr_export.egg-info/PKG-INFO",
    "docker/check.py",
    "docs/serve.md",
    "model.onnx",
    "runtimes/__pycache__/cpu.pyc",
    "runtimes/backends/__pycache__/x.pyc",
    "tests/conftest.py",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_all_else_stays_out_of_the_build(name: str) -> None:
    assert not in_context(name)
