"""What lies beside an engine, in `<engine>.json`: what it was made from, where it runs, and what its outputs mean.

`admission` reads it before an engine is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

from detr_export.runtimes.described import processor_of
from detr_export.runtimes.documents import Size, parse, read_document, shown, typed
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.metadata_schema import VersionSchema, require_one_of
from detr_export.runtimes.session import DTYPES, TensorSpec

FORMAT_VERSION = 2  # it is raised when a reader of the older format would misread the document

_DAMAGED = "it is damaged"
_PRECISIONS = ("fp32", "fp16", "int8")
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,5}[\w.+-]{0,40}", re.ASCII)


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
            ArtifactError: the text is not JSON, lacks a field, has one of another type or range, or has a format that is
                newer than this version reads.
        """
        return cls.from_document(parse(text, "it", ArtifactError))

    @classmethod
    def from_document(cls, document: Any) -> EngineSidecar:
        """Reads the document after JSON was parsed; errors as of `from_json`."""
        version = typed(document, VersionSchema, _DAMAGED, ArtifactError).format_version
        if version > FORMAT_VERSION:
            raise ArtifactError(f"format {version} is newer than this detr-export reads; update it")
        found = typed(_from_1(document) if version == 1 else document, _Schema, _DAMAGED, ArtifactError)
        require_one_of(found.precision, _PRECISIONS, f"{_DAMAGED}: precision")
        if _VERSION.fullmatch(found.library_version) is None:
            raise ArtifactError(
                f"{_DAMAGED}: library_version is {shown(found.library_version)}; expected numbers like 10.9.0"
            )
        for name in ("inputs", "outputs"):
            for spec in getattr(found, name):
                require_one_of(spec.dtype, DTYPES, f"{_DAMAGED}: the dtype of {spec.name!r:.60} in {name}")
        return cls(
            sha256=found.sha256,
            source_sha256=found.source_sha256,
            build_key=found.build_key,
            library=found.library,
            library_version=found.library_version,
            cuda=found.cuda,
            gpu=found.gpu,
            targets=tuple(found.targets),
            precision=found.precision,
            fallback=found.fallback,
            version_compatible=found.version_compatible,
            hardware_compatible=found.hardware_compatible,
            profiles=tuple(found.profiles),
            inputs=tuple(TensorSpec(spec.name, spec.dtype, tuple(spec.shape)) for spec in found.inputs),
            outputs=tuple(TensorSpec(spec.name, spec.dtype, tuple(spec.shape)) for spec in found.outputs),
            layers=found.layers,
            attestation=found.attestation,
            kernels=found.kernels,
            verified=found.verified,
            metadata=Metadata.from_document(found.metadata),
        )


@dataclass
class _SpecSchema:
    name: str
    dtype: str
    shape: list[Union[Size, str]]


@dataclass
class _Schema:
    """The types of the fields of an `EngineSidecar`."""

    sha256: str
    source_sha256: str
    build_key: str
    library: str
    library_version: str
    cuda: Optional[str]
    gpu: Optional[str]
    targets: list[tuple[Size, Size]]
    precision: str
    fallback: Optional[str]
    version_compatible: bool
    hardware_compatible: bool
    profiles: list[str]
    inputs: list[_SpecSchema]
    outputs: list[_SpecSchema]
    layers: dict[str, Size]
    attestation: Optional[dict[str, Any]]
    kernels: Optional[dict[str, Any]]
    verified: bool
    metadata: dict[str, Any]


@dataclass
class _Compared:
    parity: Optional[dict[str, Any]]


@dataclass
class _Schema1:
    """What was written in another way in format 1."""

    tensorrt: str
    compute_capability: tuple[Size, Size]
    metadata: _Compared


def _from_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of format 1, which knew TensorRT alone, as one of this format."""
    old = typed(document, _Schema1, _DAMAGED, ArtifactError)
    return {
        **document,
        "library": "tensorrt",
        "library_version": old.tensorrt,
        "targets": [old.compute_capability],
        "attestation": None,
        "kernels": None,
        "verified": old.metadata.parity is not None,
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
    try:
        sidecar = EngineSidecar.from_document(read_document(path, ArtifactError))
        processor_of(sidecar.metadata)
    except FileNotFoundError:
        return None
    except ArtifactError as error:
        named = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ArtifactError(f"{named}; build the engine again: detr-export trt SOURCE -o {engine}") from error
    return sidecar


def source_of(engine: Path) -> str:
    """Hex SHA-256 of the ONNX file that an engine was built from.

    Raises:
        ArtifactError: there is no sidecar, or it cannot be read.
    """
    sidecar = read_sidecar(engine)
    if sidecar is None:
        raise ArtifactError(f"{sidecar_path(engine)} is missing; copy it together with the engine")
    return sidecar.source_sha256
