"""Engines for the session's tests, made without the builder of `detr_export`."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, write_sidecar
from tests.tensorrt_double.host_device import HostDevice
from tests.tensorrt_double.module import MAGIC_RTX

Range = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]  # (batch, height, width) each

LANDSCAPE: Range = ((1, 32, 96), (1, 96, 128), (2, 96, 160))
PORTRAIT: Range = ((1, 96, 32), (1, 128, 96), (2, 160, 96))
SQUARE: Range = ((1, 96, 96), (2, 96, 96), (4, 160, 160))


def write_engine(
    onnx_file: Path,
    engine: Path,
    version: str,
    profiles: tuple[Range, ...] = (LANDSCAPE, PORTRAIT, SQUARE),
    sidecar: bool = True,
    rtx: bool = False,
    **changes: Any,
) -> Path:
    """The plan that the double of TensorRT or TensorRT-RTX would build from an ONNX file, and its sidecar with some fields
    changed."""
    with OrtSession(onnx_file, spinning=False) as session:
        inputs, outputs, metadata = session.inputs, session.outputs, session.metadata
    shapes = []
    for sizes in profiles:
        named = [dict(zip(("batch", "height", "width"), size, strict=True)) for size in sizes]
        shapes.append(
            {
                spec.name: [[dim if isinstance(dim, int) else size[dim] for dim in spec.shape] for size in named]
                for spec in inputs
            }
        )
    plan: dict[str, Any] = {
        "version": version,
        "settings": {"detailed": True, "version_compatible": changes.get("version_compatible", False)},
        "onnx": base64.b64encode(onnx_file.read_bytes()).decode(),
        "profiles": shapes,
        "wrong_by": 0.0,
    }
    engine.write_bytes((MAGIC_RTX if rtx else b"") + json.dumps(plan).encode())
    if sidecar:
        assert metadata is not None
        values: dict[str, Any] = {
            "sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
            "source_sha256": "0" * 64,
            "build_key": "0" * 64,
            "library": "tensorrt",
            "library_version": version,
            "cuda": HostDevice.driver,
            "gpu": HostDevice.name,
            "targets": (HostDevice.compute_capability,),
            "precision": "fp32",
            "fallback": None,
            "version_compatible": False,
            "hardware_compatible": False,
            "profiles": (),
            "inputs": inputs,
            "outputs": outputs,
            "layers": {},
            "attestation": None,
            "kernels": None,
            "verified": True,
            "metadata": metadata,
        }
        if rtx:
            values |= {"library": "tensorrt_rtx", "cuda": None, "gpu": None, "targets": ((8, 6), (8, 9))}
        write_sidecar(engine, EngineSidecar(**{**values, **changes}))
    return engine
