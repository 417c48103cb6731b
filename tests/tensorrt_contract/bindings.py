"""Asks the real bindings of a version which attributes they do not have.

They are pure Python over a shared object that links three libraries; three small stand-ins, compiled here, let it load on a
machine without TensorRT, CUDA or a GPU. Nothing in them is ever called.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, RTX_PACKAGE = "tensorrt-cu13-bindings", "tensorrt-rtx-cu13-bindings"
STAND_INS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
_IMPORT = "import tensorrt_bindings as trt"
_IMPORT_RTX = "from detr_export.runtimes.backends.tensorrt import rtx_library; trt = rtx_library.import_tensorrt_rtx()"
_ASK = """
import json, sys
asked = json.load(sys.stdin)
missing = []
for name, attributes in asked.items():
    owner = getattr(trt, name, None) if name else trt
    if owner is None:
        missing.append(name)
    else:
        missing += [f"{name}.{item}".lstrip(".") for item in attributes if not hasattr(owner, item)]
print(json.dumps({"version": trt.__version__, "missing": sorted(missing)}))
"""


class Unavailable(Exception):
    """Why the bindings cannot be had here."""


def require_platform() -> None:
    """Raises Unavailable where there are no bindings."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"there are no TensorRT bindings to compare with for {sys.platform} {platform.machine()}")


def installed(version: str, package: str = PACKAGE, extra: str = "contract") -> Path:
    """Where pip has installed a version of a package, which comes with an extra.

    Raises:
        Unavailable: it has not.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{package} is not installed; run: pip install 'detr-export[{extra}]'") from None
    if distribution.version != version:
        raise Unavailable(f"{package} is {distribution.version}; expected {version}")
    return Path(str(distribution.locate_file("")))


def fetched(version: str, cache: Path) -> Path:
    """A folder with the unpacked wheel of a version, fetched by pip the first time.

    Raises:
        Unavailable: pip does not reach a package index.
    """
    folder = cache / f"{PACKAGE}-{version}-{sys.implementation.cache_tag}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        wheel = f"{PACKAGE}=={version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, wheel]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise Unavailable(f"pip cannot fetch {wheel}: {run.stderr.strip().splitlines()[-1:]}")
        unpacked = Path(work) / "unpacked"
        for file in Path(work).glob("*.whl"):
            with zipfile.ZipFile(file) as archive:
                archive.extractall(unpacked)
        with contextlib.suppress(OSError):  # another test process was faster
            unpacked.rename(folder)
    return folder


def compile_stand_ins(folder: Path, major: int) -> Path:
    """Compiles the stand-ins for a major version with gcc."""
    for name, functions in STAND_INS.items():
        source = folder / f"{name}.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
        library = folder / f"lib{name}.so.{major}"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder


def missing(bindings: Path, libraries: Path, asked: dict[str, set[str]]) -> tuple[str, list[str]]:
    """The version that answered, and what it does not have."""
    return _ask(_IMPORT, asked, {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(bindings)})


def missing_in_rtx(asked: dict[str, set[str]]) -> tuple[str, list[str]]:
    """The version of TensorRT-RTX that is installed, and what it does not have. Its own libraries load without a GPU."""
    return _ask(_IMPORT_RTX, asked, {})


def _ask(importing: str, asked: dict[str, set[str]], environment: dict[str, str]) -> tuple[str, list[str]]:
    given = json.dumps({name: sorted(attributes) for name, attributes in asked.items()})
    command = [sys.executable, "-c", f"{importing}\n{_ASK}"]
    run = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    return answer["version"], answer["missing"]
