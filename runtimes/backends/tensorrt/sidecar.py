"""What lies beside an engine, in `<engine>.json`: what it was made of, where it runs, and what its outputs mean.

A plan is executable code. Before it is deserialised, this document has to name its digest and fit the machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Optional

from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.errors import ArtifactError, BackendError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import TensorSpec

FORMAT_VERSION = 1  # raised when a reader of the older format would misread the document
_LOGGER = logging.getLogger("detr_export.tensorrt")
_OLDEST_COMPATIBLE = (8, 0)  # compute capability: Ampere, the first that hardware-compatible engines run on


@dataclass(frozen=True)
class EngineSidecar:
    """The document, field by field."""

    sha256: str  # of the engine file
    source_sha256: str  # of the ONNX file
    build_key: str  # of source, options, TensorRT and GPU: engines of one key are the same engine
    tensorrt: str  # full version
    cuda: str  # newest version that the driver of the building machine runs
    gpu: str
    compute_capability: tuple[int, int]
    precision: str  # "fp32", "fp16" or "int8", attested
    fallback: Optional[str]  # what had to be kept in fp32, where --fallback was asked for and needed
    version_compatible: bool
    hardware_compatible: bool
    profiles: tuple[str, ...]  # MIN:OPT:MAX of batch x height x width, in the engine's order
    inputs: tuple[TensorSpec, ...]  # the ONNX file's, whose dimensions have names
    outputs: tuple[TensorSpec, ...]
    layers: Mapping[str, int]  # layers that compute, by precision, as the engine inspector gives them
    metadata: Metadata  # the ONNX file's, with the engine's own parity
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The document as JSON text; `from_json` is its inverse."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EngineSidecar:
        """Reads the document.

        Raises:
            ArtifactError: it is not JSON, lacks a field, or has a newer format than this version reads.
        """
        try:
            values = json.loads(text)
            if values["format_version"] > FORMAT_VERSION:
                raise ArtifactError(f"format {values['format_version']} is newer than this detr-export reads; update it")
            values = {item.name: values[item.name] for item in fields(cls)}
            for name in ("inputs", "outputs"):
                values[name] = tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in values[name])
            major, minor = values["compute_capability"]
            values["compute_capability"] = (int(major), int(minor))
            values["profiles"] = tuple(values["profiles"])
            values["metadata"] = Metadata.from_json(json.dumps(values["metadata"]))
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"it is damaged: {error!r}") from error


def sidecar_path(engine: Path) -> Path:
    """`model.engine.json` beside `model.engine`."""
    return engine.with_name(engine.name + ".json")


def write_sidecar(engine: Path, sidecar: EngineSidecar) -> None:
    """Writes the document beside an engine.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(sidecar_path(engine), sidecar.to_json().encode())


def read_sidecar(engine: Path) -> Optional[EngineSidecar]:
    """The document beside an engine, None when there is none.

    Raises:
        ArtifactError: it cannot be read.
    """
    path = sidecar_path(engine)
    if not path.is_file():
        return None
    try:
        return EngineSidecar.from_json(path.read_text(encoding="utf-8"))
    except (ArtifactError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}; build the engine again: detr-export trt SOURCE -o {engine}") from error


def require_known(engine: Path, plan: bytes, sidecar: Optional[EngineSidecar]) -> EngineSidecar:
    """Refuses a plan of unknown origin.

    Raises:
        ArtifactError: there is no sidecar, or it is another file's.
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


def require_tensorrt(sidecar: EngineSidecar, installed: str) -> None:
    """Refuses an engine of another TensorRT: only version-compatible ones run on another, a later one, than built them.

    Raises:
        BackendError: names both versions.
    """
    built, here = _numbers(sidecar.tensorrt), _numbers(installed)
    fits = built[0] == here[0] and here >= built if sidecar.version_compatible else built == here
    if not fits:
        kind = "version-compatible with later ones of its major version, " if sidecar.version_compatible else ""
        raise BackendError(
            f"the engine was built with TensorRT {sidecar.tensorrt}, {kind}and this is {installed}; "
            f"build it again here, or install tensorrt=={sidecar.tensorrt}"
        )


def require_gpu(sidecar: EngineSidecar, device: CudaDevice) -> None:
    """Refuses an engine of another kind of GPU; warns when it is the same kind but another model.

    Raises:
        BackendError: names both.
    """
    here = device.compute_capability
    if sidecar.hardware_compatible and here >= _OLDEST_COMPATIBLE:
        return
    if here != sidecar.compute_capability:
        built = sidecar.compute_capability
        raise BackendError(
            f"the engine was built for {sidecar.gpu} (compute capability {built[0]}.{built[1]}), and this GPU is "
            f"{device.name} ({here[0]}.{here[1]}); build it again here, or there with --hardware-compatible"
        )
    if device.name != sidecar.gpu:
        _LOGGER.warning("the engine was tuned on %s and may be slower on %s; build it again here", sidecar.gpu, device.name)


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
