"""What a command needs to be installed, found out before it begins."""

from __future__ import annotations

import importlib.util
import platform
import sys

from detr_export.runtimes.errors import BackendError, missing_extra

# Of the extras in pyproject.toml, the packages that are imported early. One that is used later says so itself.
_PACKAGES = {
    "export": ("torch", "onnx", "onnxscript", "safetensors"),
    "train": ("matplotlib", "tqdm"),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "parquet": ("pyarrow",),
    "video": ("av",),
    "triton": ("tritonclient", "grpc", "google.protobuf"),
    "ray": ("ray", "pyarrow"),
}


def require_extra(*extras: str) -> None:
    """Looks for the packages of extras, without importing them.

    Raises:
        BackendError: one is not installed; says how to install it.
    """
    for extra in extras:
        for package in _PACKAGES[extra]:
            if importlib.util.find_spec(package) is None:
                raise missing_extra(package, extra)


def require_python(major: int, minor: int, what: str) -> None:
    """Refuses an older Python.

    Raises:
        BackendError: this Python is older than `major.minor`, which `what` needs.
    """
    if sys.version_info < (major, minor):
        raise BackendError(f"{what} needs Python {major}.{minor} or newer; this is {platform.python_version()}")
