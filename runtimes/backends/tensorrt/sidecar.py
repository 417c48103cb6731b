"""What lies beside an engine, in `<engine>.json`: what it was made from, where it runs, and what its outputs mean.

`admission` reads it before an engine is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import TensorSpec

FORMAT_VERSION = 2  # it is raised when a reader of the older format would misread the document


@dataclass(frozen=True)
class EngineSidecar:
    """The document, field by field."""

    sha256: str  # digest of the engine file
    source_sha256: str  # digest of the ONNX file
    build_key: str  # digest of source, options, library and GPU; engines with one key are the same engine
    library: str  # "tensorrt" or "tensorrt_rtx"
    library_version: str  # in full
    cuda: Optional[str]  # newest CUDA version that the driver of the building machine supports; None if it had no GPU
    gpu: Optional[str]  # on which the kernels were chosen; None if the library was told only what to build for
    targets: tuple[tuple[int, int], ...]  # compute capabilities that it was built for
    precision: str  # "fp32", "fp16" or "int8"; it was checked after the build
    fallback: Optional[str]  # what --fallback had to keep in fp32; None if nothing
    version_compatible: bool
    hardware_compatible: bool
    profiles: tuple[str, ...]  # MIN:OPT:MAX of batch x height x width, in the engine's order
    inputs: tuple[TensorSpec, ...]  # inputs of the ONNX file, whose dimensions have names
    outputs: tuple[TensorSpec, ...]
    # Number of layers that compute, by precision: from the engine inspector, or for TensorRT-RTX from the builder's log.
    layers: Mapping[str, int]
    attestation: Optional[Mapping[str, Any]]  # the same by kind of layer, and what they are of the graph; None in format 1
    kernels: Optional[Mapping[str, Any]]  # what the builder logged of the first profile's kernels; None if nothing
    verified: bool  # whether it was run and agreed with its checkpoint; if not, nobody knows what it computes
    metadata: Metadata  # metadata of the ONNX file, with the engine's own parity
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The document as JSON text; `from_json` is its inverse."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EngineSidecar:
        """Reads the document.

        Raises:
            ArtifactError: the text is not JSON, lacks a field, or has a format that is newer than this version reads.
        """
        try:
            values = json.loads(text)
            if values["format_version"] > FORMAT_VERSION:
                raise ArtifactError(f"format {values['format_version']} is newer than this detr-export reads; update it")
            if values["format_version"] == 1:
                values = _from_1(values)
            values = {item.name: values[item.name] for item in fields(cls)}
            for name in ("inputs", "outputs"):
                values[name] = tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in values[name])
            values["targets"] = tuple((int(major), int(minor)) for major, minor in values["targets"])
            if not isinstance(values["verified"], bool):
                raise TypeError("verified is neither true nor false")
            values["profiles"] = tuple(values["profiles"])
            values["metadata"] = Metadata.from_json(json.dumps(values["metadata"]))
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"it is damaged: {error!r}") from error


def _from_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """A document of format 1, which knew TensorRT alone, as one of this format."""
    return {
        **values,
        "library": "tensorrt",
        "library_version": values["tensorrt"],
        "targets": [values["compute_capability"]],
        "attestation": None,
        "kernels": None,
        "verified": values["metadata"]["parity"] is not None,
        "format_version": FORMAT_VERSION,
    }


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
    """The document beside an engine, or None if there is none.

    Raises:
        ArtifactError: the document cannot be read.
    """
    path = sidecar_path(engine)
    if not path.is_file():
        return None
    try:
        return EngineSidecar.from_json(path.read_text(encoding="utf-8"))
    except (ArtifactError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}; build the engine again: detr-export trt SOURCE -o {engine}") from error


def source_of(engine: Path) -> str:
    """Hex SHA-256 of the ONNX file that an engine was built from.

    Raises:
        ArtifactError: there is no sidecar, or it cannot be read.
    """
    sidecar = read_sidecar(engine)
    if sidecar is None:
        raise ArtifactError(f"{sidecar_path(engine)} is missing; copy it together with the engine")
    return sidecar.source_sha256
