"""The wheel has one name and all that belongs to it, and works where nothing but the extra `cpu` is installed.

The wheel is built from a copy of the sources: setuptools would otherwise take what an earlier build left in `build/`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("detr_export", "runtimes", "benchmarks")
MEASUREMENTS = "benchmarks/results"  # the one folder of the rooms that stays out
BIN = "Scripts" if os.name == "nt" else "bin"


def pip(*arguments: str, python: Path | None = None) -> None:
    """Runs this environment's pip, for another environment where one is given."""
    other = [] if python is None else ["--python", str(python)]
    command = [sys.executable, "-m", "pip", *other, *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files_of(room: str, pattern: str) -> set[str]:
    """The files of a room, as a wheel names them."""
    start = ROOT / room
    found = set()
    for folder, _, names in os.walk(start):  # which does not follow the links to the other rooms
        here = Path(folder).relative_to(ROOT)
        if here.as_posix().startswith(MEASUREMENTS):
            continue
        paths = {here / name for name in names if Path(name).match(pattern) and not (Path(folder) / name).is_symlink()}
        found |= {(path if room == "detr_export" else "detr_export" / path).as_posix() for path in paths}
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ROOMS:
        shutil.copytree(ROOT / room, sources / room, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, sources / name)
    try:
        import setuptools

        isolation = [] if int(setuptools.__version__.split(".")[0]) < 77 else ["--no-build-isolation"]
    except ImportError:
        isolation = []
    pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), str(sources))
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def names(wheel: Path) -> set[str]:
    """What is in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_one_name_is_installed(names: set[str]) -> None:
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"detr_export"}


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_are_complete(names: set[str], room: str) -> None:
    inside = "detr_export/" if room == "detr_export" else f"detr_export/{room}/"
    for pattern in ("*.py", "*.json"):
        expected = files_of(room, pattern)
        assert expected or (room, pattern) == ("benchmarks", "*.json")
        assert expected <= names, sorted(expected - names)
    others = tuple(f"detr_export/{other}/" for other in ROOMS if other != room)
    extra = {name for name in names if name.startswith(inside) and name.endswith((".py", ".json"))}
    extra = {name for name in extra if room != "detr_export" or not name.startswith(others)}
    assert extra - files_of(room, "*.py") - files_of(room, "*.json") <= {"detr_export/cli.py"}


def test_what_is_no_code_is_there(names: set[str]) -> None:
    demo = {"config.json", "model.safetensors", "preprocessor_config.json", "recipe.json", "scores.json"}
    assert {f"detr_export/demo_checkpoint/{name}" for name in demo} <= names
    assert {"detr_export/py.typed", "detr_export/cli.py", "detr_export/runtimes/known_issues.json"} <= names
    assert "detr_export/runtimes/serving/page/index.html" in names


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment with `detr-export[cpu]` and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    programs = folder / BIN
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    pip("install", "--no-compile", *constraints, f"{wheel}[cpu]", python=programs / "python")
    return programs


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder whose modules have the names of the rooms, and cannot be imported."""
    for name in ("cli.py", "runtimes/__init__.py", "benchmarks/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"raise RuntimeError('the decoy {name} was imported')\n")
    return tmp_path


def run(program: Path, *arguments: str, folder: Path, status: int = 0) -> str:
    """Runs a program in a folder, without what this test's environment would add to its imports."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(program), *arguments], cwd=folder, env=settings, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_neither_torch_nor_onnx_came_along(environment: Path, decoys: Path) -> None:
    """Or the tests below would prove nothing."""
    code = "import importlib.util as u; print([name for name in ('torch', 'onnx', 'transformers') if u.find_spec(name)])"
    assert run(environment / "python", "-c", code, folder=decoys).strip() == "[]"


@pytest.mark.parametrize("program", ["detr-export", "detr-bench"])
def test_help(environment: Path, decoys: Path, program: str) -> None:
    assert "Usage" in run(environment / program, "--help", folder=decoys)


def test_version_of_the_module(environment: Path, decoys: Path, wheel: Path) -> None:
    printed = run(environment / "python", "-m", "detr_export", "--version", folder=decoys)
    assert printed.strip() == f"detr-export {wheel.name.split('-')[1]}"


def test_importing_the_predictor(environment: Path, decoys: Path) -> None:
    code = "from detr_export import Predictor; import sys; assert 'torch' not in sys.modules; print(Predictor.__module__)"
    assert run(environment / "python", "-c", code, folder=decoys).strip() == "detr_export.runtimes.predictor"


def test_doctor(environment: Path, decoys: Path) -> None:
    printed = run(environment / "detr-export", "doctor", folder=decoys)
    assert "onnxruntime" in printed


def test_inspect(environment: Path, decoys: Path, tiny_onnx: Path) -> None:
    printed = run(environment / "detr-export", "inspect", str(tiny_onnx), folder=decoys)
    assert "pixel_values" in printed


def test_predict(environment: Path, decoys: Path, tiny_onnx: Path, photo: Path) -> None:
    arguments = ("predict", str(tiny_onnx), str(photo), "--threshold", "0", "--output", "found", "--json")
    printed = run(environment / "detr-export", *arguments, folder=decoys)
    assert json.loads(printed)[0]["detections"]
    assert (decoys / "found" / "predictions.json").is_file()


def test_making_files_names_the_missing_extra(environment: Path, decoys: Path) -> None:
    printed = run(environment / "detr-export", "onnx", folder=decoys, status=1)
    assert "detr-export[export]" in printed
