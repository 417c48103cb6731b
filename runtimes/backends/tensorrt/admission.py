"""Which engines may be opened here: those of known origin, built for the installed library and this kind of GPU.

A plan is executable code. So before it is deserialised, its sidecar has to name its digest and fit the machine.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Optional

from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.tensorrt.api import Library, capability_text
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, read_sidecar, sidecar_path
from detr_export.runtimes.errors import ArtifactError, BackendError

_LOGGER = logging.getLogger("detr_export.tensorrt")
_FIRST_COMPATIBLE = (8, 6)  # TensorRT that could first build version-compatible engines
_OLDEST_COMPATIBLE = (8, 0)  # compute capability of Ampere, the oldest that hardware-compatible engines run on
_WARNED: set[tuple[str, str]] = set()  # engines of which `check_verified` has warned: path and digest


def require_known(engine: Path, plan: bytes, sidecar: Optional[EngineSidecar]) -> EngineSidecar:
    """Refuses a plan of unknown origin.

    Raises:
        ArtifactError: there is no sidecar, or it describes another file.
    """
    if sidecar is None:
        raise ArtifactError(
            f"{sidecar_path(engine)} is missing, and a plan is executable code; copy it together with the engine, "
            "or if you trust where it comes from, add --trust-engine (trust_engine=True)"
        )
    if hashlib.sha256(plan).hexdigest() != sidecar.sha256:
        raise ArtifactError(
            f"{engine} is not the file that {sidecar_path(engine).name} describes (its SHA-256 differs); copy both again, "
            "build it again, or if you trust where it comes from, add --trust-engine (trust_engine=True)"
        )
    return sidecar


def require_version(sidecar: EngineSidecar, library: Library) -> None:
    """Refuses an engine of another version. Only version-compatible engines run on a later TensorRT than built them.

    They bring the lean runtime of the version that built them. Source: the support matrix of TensorRT 11.4, "Engine
    Portability". It allows two steps across major versions, 10 on 11 and 8 on 10. The second is refused here: an engine has
    only the calls that both versions have, and the session gives memory to contexts with calls that 8.6 lacks.

    Raises:
        BackendError: names both versions.
    """
    built, here = _numbers(sidecar.library_version), _numbers(library.version)
    fits = _runs_on(built, here) if sidecar.version_compatible else built == here
    if not fits:
        kind = ""
        if sidecar.version_compatible:
            newer = ", and with 11" if built[0] == 10 else ""
            kind = f"version-compatible with later ones of {built[0]}{newer}, "
        raise BackendError(
            f"the engine was built with {library.title} {sidecar.library_version}, {kind}and this is {library.version}; "
            f"build it again here, or install {library.package}=={sidecar.library_version}"
        )


def require_gpu(sidecar: EngineSidecar, device: CudaDevice) -> None:
    """Refuses an engine for another kind of GPU. It warns if the GPU is of the same kind but another model.

    Raises:
        BackendError: names both GPUs.
    """
    here = device.compute_capability
    if sidecar.hardware_compatible and here >= _OLDEST_COMPATIBLE:
        return
    if here not in sidecar.targets:
        this = f"{device.name} ({capability_text(here)})"
        targets = ", ".join(map(capability_text, sidecar.targets))
        if sidecar.gpu is None:
            raise BackendError(
                f"the engine was compiled for the compute capabilities {targets}, and this GPU is {this}; "
                f"build it again with --compute-capability {capability_text(here)}"
            )
        raise BackendError(
            f"the engine was built for {sidecar.gpu} (compute capability {targets}), and this GPU is "
            f"{this}; build it again here, or there with --hardware-compatible"
        )
    if sidecar.gpu is not None and device.name != sidecar.gpu:
        _LOGGER.warning("the engine was tuned on %s and may be slower on %s; build it again here", sidecar.gpu, device.name)


def _runs_on(built: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether a version-compatible engine of version `built` runs on version `here`."""
    same_major, ten_on_eleven = built[0] == here[0], (built[0], here[0]) == (10, 11)
    return _FIRST_COMPATIBLE <= built <= here and (same_major or ten_on_eleven)


def check_verified(file: Path, strict: bool) -> None:
    """Looks whether an engine was run and compared with its checkpoint. If it was not, a warning says so, once for a file.

    Args:
        file: the engine.
        strict: refuse such an engine, and one that has no sidecar, instead of warning.

    Raises:
        ArtifactError: it is refused; or its sidecar is damaged.
    """
    sidecar = read_sidecar(file)
    remedy = f"check it on this machine: detr-export verify {file}"
    if sidecar is None:
        if strict:
            raise ArtifactError(f"{sidecar_path(file)} is missing, so nobody knows whether the engine is right; {remedy}")
        return
    if sidecar.verified:
        return
    state = "was built and never compared with its checkpoint"
    if strict:
        raise ArtifactError(f"{file} {state}; {remedy}, or leave strict (--strict) out")
    key = (str(file.resolve()), sidecar.sha256)
    if key not in _WARNED:
        _WARNED.add(key)
        _LOGGER.warning("%s %s, so its results may be wrong; %s", file, state, remedy)


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch number."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
