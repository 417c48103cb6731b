"""What lies beside an engine, in `<engine>.json`: what it was made from, where it runs, and what its outputs mean.

`admission` reads it before an engine is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Optional

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import TensorSpec

FORMAT_VERSION = 1  # it is raised when a reader of the older format would misread the document


@dataclass(frozen=True)
class EngineSidecar:
    """The document, field by field."""

    sha256: str  # digest of the engine file
    source_sha256: str  # digest of the ONNX file
    build_key: str  # digest of source, options, TensorRT and GPU; engines with one key are the same engine
    tensorrt: str  # full version
    cuda: str  # newest CUDA version that the driver of the building machine supports
    gpu: str
    compute_capability: tuple[int, int]
    precision: str  # "fp32", "fp16" or "int8"; it was checked after the build
    fallback: Optional[str]  # what --fallback had to keep in fp32; None if nothing
    version_compatible: bool
    hardware_compatible: bool
    profiles: tuple[str, ...]  # MIN:OPT:MAX of batch x height x width, in the engine's order
    inputs: tuple[TensorSpec, ...]  # inputs of the ONNX file, whose dimensions have names
    outputs: tuple[TensorSpec, ...]
    layers: Mapping[str, int]  # number of layers that compute, by precision, from the engine inspector
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
