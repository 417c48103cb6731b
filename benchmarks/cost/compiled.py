"""What TensorRT's compiler makes of an ONNX file: how many kernels, what it fuses, and what stays fp32. It takes no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_export.engines.build import build_engine
from detr_export.engines.options import EngineOptions
from detr_export.runtimes.backends.tensorrt.api import TENSORRT_RTX, TITLES
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.temporary import temporary_folder


def compiled_kernels(onnx_file: str | Path) -> list[Mapping[str, Any]]:
    """Compiles a file with TensorRT-RTX, for the default profiles and GPUs of `detr-export trt --rtx`.

    Args:
        onnx_file: from `detr-export onnx`.

    Returns:
        For the engine, and for that of its mask head where it has one: the fields of a `KernelReport`, those of an
        `Attestation` as `attestation`, and `compiler`, its name and version.

    Raises:
        DetrError: as `build_engine`.
    """
    options = EngineOptions(library=TENSORRT_RTX, verify=False)
    with temporary_folder() as folder:
        result = build_engine(onnx_file, folder / "compiled.engine", options)
    results = [result] if result.mask_head is None else [result, result.mask_head]
    return [_kernels(item.sidecar) for item in results]


def _kernels(sidecar: EngineSidecar) -> Mapping[str, Any]:
    compiler = f"{TITLES[sidecar.library]} {sidecar.library_version}"
    if sidecar.kernels is None:
        raise BackendError(f"{compiler} says nothing of the kernels that it compiled")
    return {**sidecar.kernels, "attestation": sidecar.attestation, "compiler": compiler}
