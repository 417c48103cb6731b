"""How to build an engine; needs no TensorRT."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.devices import CUDA, parse_device
from detr_export.runtimes.errors import BackendError


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

    profiles: tuple[EngineProfile, ...] = ()  # derived from the processor's settings when empty
    max_batch: int = 1  # of derived profiles
    settings: BuildSettings = field(default_factory=BuildSettings)
    timing_cache: Path | None = None  # read before and written after the build
    device: int = 0  # number of the GPU
    verify: bool = True
    checkpoint: str | None = None  # what to compare with; the checkpoint that the file came from when None
    overwrite: bool = False


def gpu_number(device: str) -> int:
    """The number of the GPU that `cuda` or `cuda:N` names.

    Raises:
        BackendError: it names no GPU.
    """
    place = parse_device(device)
    if place.kind != CUDA:
        raise BackendError(f"device is {device!r}; an engine is built on a GPU, 'cuda' or 'cuda:N'")
    return place.index
