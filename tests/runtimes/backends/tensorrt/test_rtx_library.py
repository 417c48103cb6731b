"""Finding TensorRT-RTX: its bindings and libraries lie in two packages, which may be missing, broken or of two versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
ASK = """
import sys
from detr_export.runtimes.backends.tensorrt import rtx_library
from detr_export.runtimes.errors import BackendError
try:
    print(rtx_library.import_tensorrt_rtx().__version__)
except BackendError as error:
    print(error)
assert "onnxruntime_ep_nv_tensorrt_rtx" not in sys.modules
"""
VERSION = "".join(
    f"int getInferLib{part}Version(void) {{ return {number}; }}\n"
    for part, number in {"Major": 1, "Minor": 7, "Patch": 1, "Build": 116}.items()
)


def answer(folder: Path) -> str:
    """What comes of an import in a process of its own, with the packages of a folder before all others."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Bindings that say 1.7.1.116, and a package for libraries, which is not to be imported."""
    for name, content in {
        "tensorrt_rtx_bindings": '__version__ = "1.7.1.116"\n',
        "onnxruntime_ep_nv_tensorrt_rtx": "raise RuntimeError('it was imported')\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    return tmp_path


def add_libraries(packages: Path) -> None:
    source = packages / "version.c"
    source.write_text(VERSION)
    for name in ("tensorrt_rtx", "tensorrt_onnxparser_rtx"):
        library = packages / "onnxruntime_ep_nv_tensorrt_rtx" / f"lib{name}.so.1.7.1"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


def test_bindings_and_libraries_of_one_version(packages: Path) -> None:
    add_libraries(packages)
    assert answer(packages) == "1.7.1.116"


def test_the_whole_package_is_preferred(packages: Path) -> None:
    (packages / "tensorrt_rtx.py").write_text('__version__ = "1.8.0.1"\n')
    assert answer(packages) == "1.8.0.1"


@pytest.mark.parametrize(
    ("changed", "content", "message"),
    [
        (
            "tensorrt_rtx_bindings/__init__.py",
            '__version__ = "1.6.1.120"',
            "tensorrt_rtx_bindings is 1.6.1.120, and the libraries in onnxruntime_ep_nv_tensorrt_rtx are 1.7.1.116; "
            "expected one version: run: pip install 'detr-export[rtx]'",
        ),
        (
            "tensorrt_rtx_bindings/__init__.py",
            "raise ImportError('undefined symbol')",
            "tensorrt_rtx_bindings does not load with TensorRT-RTX 1.7.1.116: undefined symbol; ",
        ),
        (
            "onnxruntime_ep_nv_tensorrt_rtx/libtensorrt_rtx.so.1.7.1",
            "no library",
            "the libraries of TensorRT-RTX do not load: ",
        ),
        ("tensorrt_rtx.py", "raise ImportError('no driver')", "tensorrt_rtx does not load: no driver; "),
    ],
)
def test_what_is_broken(changed: str, content: str, message: str, packages: Path) -> None:
    add_libraries(packages)
    (packages / changed).write_text(content)
    found = answer(packages)
    assert found.startswith(message)
    assert "pip install 'detr-export[rtx]'" in found


def test_bindings_without_libraries(packages: Path) -> None:
    expected = "tensorrt_rtx_bindings is installed, and the libraries of TensorRT-RTX are not; run: pip install"
    assert answer(packages).startswith(expected)
