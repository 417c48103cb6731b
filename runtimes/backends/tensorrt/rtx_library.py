"""Finds TensorRT-RTX. Its Python bindings and its libraries come in packages that do not know each other.

The package `tensorrt_rtx` has both. PyPI has the bindings alone (`tensorrt-rtx-cu13-bindings`), and the libraries inside of
ONNX Runtime's plug-in (`onnxruntime-ep-nv-tensorrt-rtx-cu13`), whose own module is not needed for that and is not imported.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any

from detr_export.runtimes.errors import BackendError, first_line, missing_extra

_MODULE, _BINDINGS, _LIBRARIES = "tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_PARTS = ("libtensorrt_rtx.so.1.*", "libtensorrt_onnxparser_rtx.so.1.*")  # the second needs the first
_REMEDY = "run: pip install 'detr-export[rtx]'"


def import_tensorrt_rtx() -> Any:
    """The module of TensorRT-RTX, with its libraries loaded.

    Raises:
        BackendError: it is not installed, does not load, or bindings and libraries are of different versions.
    """
    if importlib.util.find_spec(_MODULE) is not None:
        try:
            return importlib.import_module(_MODULE)
        except ImportError as error:
            raise BackendError(f"tensorrt_rtx does not load: {first_line(error)}; {_REMEDY}") from error
    if importlib.util.find_spec(_BINDINGS) is None:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise BackendError(
                f"tensorrt_rtx is not installed; PyPI has it for Linux on x86_64, and this is {platform.system()} on "
                f"{platform.machine()}: install NVIDIA's own package"
            )
        raise missing_extra("tensorrt_rtx", "rtx")
    version = _load(_library_files())
    try:
        trt = importlib.import_module(_BINDINGS)
    except ImportError as error:
        raise BackendError(
            f"{_BINDINGS} does not load with TensorRT-RTX {version}: {first_line(error)}; {_REMEDY}"
        ) from error
    if trt.__version__ != version:
        raise BackendError(
            f"{_BINDINGS} is {trt.__version__}, and the libraries in {_LIBRARIES} are {version}; "
            f"expected one version: {_REMEDY}"
        )
    return trt


def _library_files() -> list[Path]:
    """The files of the libraries, in the order in which they are loaded."""
    spec = importlib.util.find_spec(_LIBRARIES)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    files = [next((file for folder in folders for file in sorted(folder.glob(part))), None) for part in _PARTS]
    found = [file for file in files if file is not None]
    if len(found) < len(_PARTS):
        raise BackendError(f"{_BINDINGS} is installed, and the libraries of TensorRT-RTX are not; {_REMEDY}")
    return found


def _load(files: list[Path]) -> str:
    """Loads the libraries and returns the version of the first. Once they are loaded, the bindings find them by name.

    They stay out of the global scope, because TensorRT's own libraries have functions of the same names.
    """
    try:
        core, *_ = [ctypes.CDLL(str(file)) for file in files]
        parts = [getattr(core, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch", "Build")]
    except (OSError, AttributeError) as error:
        raise BackendError(f"the libraries of TensorRT-RTX do not load: {first_line(error)}; {_REMEDY}") from error
    return ".".join(map(str, parts))
