"""Which room may import which: read off the source, and tried in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("runtimes", "detr_export", "benchmarks", "cli.py")  # each may import those before it
HEAVY = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "tensorrt", "transformers", "timm", "safetensors", "scipy")
HEAVY += ("pyarrow", "openvino", "fastapi", "uvicorn", "prometheus_client", "supervision", "pandas", "av")
HEAVY += ("tritonclient", "google.protobuf", "ray")
# Where `runtimes` may import what is not numpy, Pillow or the standard library.
BACKENDS: dict[str, str | tuple[str, ...]] = {
    "msgspec": "runtimes/documents.py",
    "onnxruntime": "runtimes/backends/ort/",
    "onnxruntime_ep_nv_tensorrt_rtx": "runtimes/backends/ort/providers.py",
    "openvino": "runtimes/backends/openvino/",
    "torch": ("runtimes/backends/torch_session.py", "runtimes/processing/torch_tensors.py"),
    "tensorrt": "runtimes/backends/tensorrt/api.py",  # rtx_library.py imports TensorRT-RTX by name
    "pycuda": "runtimes/backends/cuda/",
    "cuda": "runtimes/backends/cuda/",
    "huggingface_hub": "runtimes/hub.py",
    "pycocotools": "runtimes/processing/annotations/detection.py",
    "pyarrow": ("runtimes/results/parquet.py", "runtimes/distributed/"),
    "supervision": "runtimes/results/interop/supervision_detections.py",
    "pandas": "runtimes/results/interop/pandas_frames.py",
    "ray": "runtimes/distributed/",
    "fastapi": "runtimes/serving/",
    "starlette": "runtimes/serving/",  # below FastAPI
    "uvicorn": "runtimes/serving/",
    "python_multipart": "runtimes/serving/",
    "prometheus_client": "runtimes/serving/",
    "av": "runtimes/video/",
    "triton_python_backend_utils": "runtimes/triton/python_model.py",  # Triton puts it there
}


@dataclass(frozen=True)
class Import:
    """One imported name."""

    name: str  # absolute, with what is imported from a module at its end
    top: bool  # whether it runs when the module is imported
    typing_only: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def module(file: Path) -> str:
    """The name under which the project imports a file of its own."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "detr_export" else ("detr_export", *parts))


def room(name: str) -> str | None:
    """The room of a module of the project, None for one of another project."""
    if not name.startswith("detr_export"):
        return None
    second = name.split(".")[1] if "." in name else ""
    return {"runtimes": "runtimes", "benchmarks": "benchmarks", "cli": "cli.py"}.get(second, "detr_export")


@cache
def files(place: str) -> tuple[Path, ...]:
    """All sources below a room; `detr_export` without the links to the other rooms."""
    start = ROOT / place
    if start.is_file():
        return (start,)
    found = [file for file in sorted(start.rglob("*.py")) if not any(part.is_symlink() for part in (file, *file.parents))]
    assert found
    return tuple(found)


@cache
def imports(file: Path) -> tuple[Import, ...]:
    """All imports of a file."""

    def walk(node: ast.AST, top: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, top, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (Import(f"{node.module}.{alias.name}", top, typing_only) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, top and not inside, typing_only or typing)

    return tuple(walk(ast.parse(file.read_text(encoding="utf-8")), True, False))


@cache
def modules() -> dict[str, Path]:
    return {module(file): file for place in ROOMS for file in files(place)}


def imported_module(name: str) -> str | None:
    """The project's module that an imported name belongs to: `a.b.c` is the module `a.b` when `c` is in it."""
    return next((known for known in (name, name.rpartition(".")[0]) if known in modules()), None)


@pytest.mark.parametrize("file", files("runtimes"), ids=lambda file: str(file.relative_to(ROOT)))
def test_runtimes_needs_numpy_and_pillow_alone(file: Path) -> None:
    place = str(file.relative_to(ROOT))
    for item in imports(file):
        if item.package in {"numpy", "PIL", "__future__"} or item.package in sys.stdlib_module_names:
            continue
        if room(item.name) == "detr_export":
            assert place == "runtimes/backends/torch_session.py", f"{place} imports {item.name}"
            assert not item.top, f"{place} imports {item.name} outside of a function"
        elif room(item.name) is None:
            assert place.startswith(BACKENDS.get(item.package, "nowhere")), f"{place} imports {item.name}"


def test_the_rule_sees_the_backends() -> None:
    """Or the test above would pass on a reader that finds nothing."""
    found = {(file.name, room(item.name) or item.package) for file in files("runtimes") for item in imports(file)}
    assert {("library.py", "onnxruntime"), ("torch_session.py", "torch"), ("torch_session.py", "detr_export")} <= found


@pytest.mark.parametrize("place", ROOMS)
def test_arrows_point_one_way(place: str) -> None:
    allowed = ROOMS[: ROOMS.index(place) + 1]
    for file in files(place):
        for item in imports(file):
            assert item.package not in ("tests", *([] if place == "benchmarks" else ["transformers"])), (
                f"{file}: {item.name}"
            )
            if file.name in ("__init__.py", "__main__.py") and file.parent.name == "detr_export":
                continue  # the front door: hands out the names of `runtimes`, and starts the command line
            if file.name == "torch_session.py" and not item.top:
                continue
            target = imported_module(item.name)
            if target is not None and target != "detr_export":
                assert room(target) in allowed, f"{file} imports {item.name}"


@pytest.mark.parametrize("place", ROOMS)
def test_no_circles_in_a_room(place: str) -> None:
    """Imports for typing and inside functions count: two files that need each other are one file, or three."""
    graph: dict[str, set[str]] = {}
    for file in files(place):
        own = module(file)
        targets = {imported_module(item.name) for item in imports(file) if room(item.name) == place}
        graph[own] = {target for target in targets if target is not None and target != own and room(target) == place}
    if place == "detr_export":
        for front in ("detr_export", "detr_export.__main__"):
            graph.pop(front)
        graph = {name: targets - {"detr_export"} for name, targets in graph.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) >= set(graph)


def test_modeling_imports_nothing_above_it() -> None:
    # What reads and writes checkpoints lies below the models, so that they have from_pretrained and save_pretrained.
    below = (
        "detr_export.modeling.",
        "detr_export.config.",
        "detr_export.backbone_config.",
        "detr_export.checkpoints.",
        "detr_export.runtimes.errors.",
        "detr_export.runtimes.mask_head.",  # the names that tensors have in files
    )
    for file in files("detr_export/modeling"):
        for item in imports(file):
            if room(item.name) is not None:
                assert item.name.startswith((*below, "detr_export.runtimes.processing.image_processor.")), (file.name, item)
    for file in files("detr_export/checkpoints"):
        assert not any(item.name.startswith("detr_export.modeling") for item in imports(file)), file.name


def test_onnx_and_its_tools_stay_out_of_the_model() -> None:
    for file in files("detr_export/modeling"):
        assert not {item.package for item in imports(file)} & {"onnx", "onnxruntime", "onnxsim", "safetensors"}


def test_tritons_client_stays_in_its_folder() -> None:
    found = {
        file.parent.name
        for place in ROOMS
        for file in files(place)
        for item in imports(file)
        if item.package == "tritonclient"
    }
    assert found == {"triton"}


LIGHT = ("detr_export", "detr_export.runtimes", "detr_export.runtimes.predictor", "detr_export.runtimes.folder")


@pytest.mark.parametrize("name", [*LIGHT, "detr_export.cli", "detr_export.terminal", "detr_export.benchmarks.command"])
def test_importing_is_light(name: str) -> None:
    code = f"import sys, {name}; print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["detr_export.runtimes", "detr_export.cli", "detr_export.benchmarks.command"])
def test_importing_works_without_the_extras(name: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import {name}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


def test_the_package_hands_out_its_names() -> None:
    code = (
        "import sys, detr_export; assert 'numpy' not in sys.modules; "
        "from detr_export import Predictor, __version__; assert 'torch' not in sys.modules; print(Predictor, __version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("<class 'detr_export.runtimes.predictor.Predictor'> ")


@pytest.mark.parametrize("file", ["cli.py", "detr_export/terminal.py", "benchmarks/command.py"])
def test_the_command_lines_keep_their_annotations(file: str) -> None:
    """On Python 3.9 typer does not resolve annotations that are strings: `--json` would become `--as-json`."""
    lines = (ROOT / file).read_text().splitlines()
    assert not any(line.startswith("from __future__") for line in lines)
