"""Which room may import which: read off the source, and tried in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("runtimes", "detr_export", "benchmarks")
HEAVY = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "tensorrt", "transformers", "timm", "safetensors", "scipy")
BACKENDS = {
    "onnxruntime": ("ort_session.py", "ort_providers.py"),
    "onnxruntime_ep_nv_tensorrt_rtx": ("ort_providers.py",),
    "torch": ("torch_session.py",),
    "tensorrt": ("tensorrt_api.py",),
    "pycuda": ("cuda_memory.py",),
    "pycocotools": ("annotations.py",),
}


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def imports(file: Path) -> Iterator[tuple[str, bool, bool]]:
    """Yields the full name of each import, whether it runs when the module is imported, and whether only typing sees it."""

    def walk(node: ast.AST, top: bool, typing_only: bool) -> Iterator[tuple[str, bool, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, top, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from ((f"{node.module}.{alias.name}", top, typing_only) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, top and not inside, typing_only or typing)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), True, False)


def package(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("file", files("runtimes"), ids=lambda file: str(file.relative_to(ROOT)))
def test_runtimes_needs_numpy_and_pillow_alone(file: Path) -> None:
    for name, top, _ in imports(file):
        if package(name) in {"numpy", "PIL", "runtimes", "__future__"} or package(name) in sys.stdlib_module_names:
            continue
        if package(name) == "detr_export":
            assert file.name == "torch_session.py", f"{file.name} imports {name}"
            assert not top, f"{file.name} imports {name} outside of a function"
        else:
            assert file.name in BACKENDS.get(package(name), ()), f"{file.name} imports {name}"


def test_the_rule_sees_the_backends() -> None:
    """Or the test above would pass on a reader that finds nothing."""
    found = {(file.name, package(name)) for file in files("runtimes") for name, *_ in imports(file)}
    assert {("ort_session.py", "onnxruntime"), ("torch_session.py", "torch"), ("torch_session.py", "detr_export")} <= found


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("runtimes", {"benchmarks", "cli", "tests"}),
        ("detr_export", {"benchmarks", "cli", "tests", "transformers"}),
        ("benchmarks", {"cli", "tests"}),
    ],
)
def test_arrows_point_one_way(room: str, forbidden: set[str]) -> None:
    for file in files(room):
        for name, *_ in imports(file):
            assert package(name) not in forbidden, f"{file} imports {name}"


def test_modeling_imports_nothing_above_it() -> None:
    # What reads and writes checkpoints lies below the models, so that they have from_pretrained and save_pretrained.
    below = ("detr_export.config.", "detr_export.checkpoint.", "detr_export.saving.")
    allowed = ("detr_export.modeling.", *below, "runtimes.errors.", "runtimes.processing.image_processor.")
    for file in files("detr_export/modeling"):
        for name, *_ in imports(file):
            if package(name) in ROOMS:
                assert name.startswith(allowed), f"{file.name} imports {name}"


def test_onnx_and_its_tools_stay_out_of_the_model() -> None:
    for file in files("detr_export/modeling"):
        assert not {package(name) for name, *_ in imports(file)} & {"onnx", "onnxruntime", "onnxsim", "safetensors"}


@pytest.mark.parametrize("module", ["runtimes", "runtimes.predictor", "runtimes.file_prediction", "cli", "detr_export"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["runtimes", "cli"])
def test_importing_works_without_the_extras(module: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import {module}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


def test_the_command_line_keeps_its_annotations() -> None:
    """On Python 3.9 typer does not resolve annotations that are strings: `--json` would become `--as-json`."""
    lines = (ROOT / "cli.py").read_text().splitlines()
    assert not any(line.startswith("from __future__") for line in lines)
