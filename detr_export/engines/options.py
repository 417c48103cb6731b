"""How to build an engine; needs no TensorRT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from detr_export.runtimes.backends.tensorrt.api import TENSORRT, ComputeCapability
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.devices import CUDA, parse_device
from detr_export.runtimes.errors import BackendError, InputError

_CAPABILITY = re.compile(r"(\d+)\.(\d)")


@dataclass(frozen=True)
class BuildSettings:
    """Settings of TensorRT's builder; None leaves one to TensorRT."""

    workspace_mib: int | None = None  # scratch memory that a kernel may use, MiB
    optimization_level: int | None = None  # 0, fast to build, to 5, fast to run
    version_compatible: bool = False  # runs on later TensorRTs: of the same major version, and 11 for 10
    hardware_compatible: bool = False  # runs on every GPU from Ampere on
    aux_streams: int | None = None  # CUDA streams beside the main one


@dataclass(frozen=True)
class EngineOptions:
    """How to build."""

    library: str = TENSORRT  # or TENSORRT_RTX
    # Compute capabilities that TensorRT-RTX compiles for; all that one engine can serve when empty. TensorRT: its GPU's.
    targets: tuple[ComputeCapability, ...] = ()
    profiles: tuple[EngineProfile, ...] = ()  # derived from the processor's settings when empty
    max_batch: int = 1  # of derived profiles
    settings: BuildSettings = field(default_factory=BuildSettings)
    timing_cache: Path | None = None  # read before and written after the build
    device: int = 0  # number of the GPU; TensorRT-RTX compiles without one
    verify: bool = True  # compare the engine with its checkpoint, if it can run here
    checkpoint: str | None = None  # what to compare with; the checkpoint that the file came from when None
    overwrite: bool = False


def parse_capability(text: str) -> ComputeCapability:
    """Reads a compute capability, such as 8.9.

    Raises:
        InputError: the text is malformed.
    """
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise InputError(f"compute capability is {text!r}; expected two numbers such as 8.9")
    return int(match[1]), int(match[2])


def refused_option(settings: BuildSettings, timing_cache: Path | None, refused: Mapping[str, str]) -> str | None:
    """The first option that was given and is refused, with the reason; None if there is none."""
    given = {
        "--optimization-level": settings.optimization_level is not None,
        "--version-compatible": settings.version_compatible,
        "--hardware-compatible": settings.hardware_compatible,
        "--timing-cache": timing_cache is not None,
    }
    return next((f"{name}: {reason}" for name, reason in refused.items() if given[name]), None)


def gpu_number(device: str) -> int:
    """The number of the GPU that `cuda` or `cuda:N` names.

    Raises:
        BackendError: it names no GPU.
    """
    place = parse_device(device)
    if place.kind != CUDA:
        raise BackendError(f"device is {device!r}; an engine needs a GPU, 'cuda' or 'cuda:N'")
    return place.index
