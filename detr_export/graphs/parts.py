"""The graphs that an export makes: one, or a detector and its mask head, each for a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from detr_export.runtimes.described import read_metadata
from detr_export.runtimes.files import sha256_of_file, writing
from detr_export.runtimes.mask_head import QUERY_STATES, TASK, mask_head_file
from detr_export.runtimes.metadata import METADATA_KEY, Metadata

_PRODUCER = "detr-export"


@dataclass(frozen=True)
class Parts:
    """A model's graphs."""

    model: onnx.ModelProto  # the whole model, or its detector
    mask_head: onnx.ModelProto | None = None

    def each(self, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Parts:
        """The parts after a change to each of them."""
        return Parts(change(self.model), None if self.mask_head is None else change(self.mask_head))


def save_parts(parts: Parts, metadata: Metadata, file: Path) -> Metadata:
    """Writes the model to `file`, and its mask head beside it.

    Returns:
        What the model's file says of itself: `metadata`, with the digest of the mask head's file.
    """
    if parts.mask_head is not None:
        beside = mask_head_file(file)
        save_model(parts.mask_head, mask_head_metadata(metadata, _queries(parts.model)), beside)
        metadata = replace(metadata, mask_head=sha256_of_file(beside))
    save_model(parts.model, metadata, file)
    return metadata


def mask_head_metadata(metadata: Metadata, queries: int) -> Metadata:
    """What a mask head's file says of itself. It does not depend on the comparison, which is of both files together."""
    precision = metadata.precision if metadata.quantization is None else metadata.quantization.float_precision
    ranges = {"batch": (1, None), "queries": (1, queries)}
    cleared = replace(metadata, mask_head=None, quantization=None, parity=None)
    return replace(cleared, task=TASK, precision=precision, ranges=ranges)


def _queries(detector: onnx.ModelProto) -> int:
    """How many queries a detector has."""
    (states,) = [value for value in detector.graph.output if value.name == QUERY_STATES]
    return int(states.type.tensor_type.shape.dim[1].dim_value)


def metadata_of(proto: onnx.ModelProto, file: Path) -> Metadata | None:
    """What a loaded graph says of itself, None if it says nothing; `file` is for messages.

    Raises:
        ArtifactError: the document is damaged.
    """
    return read_metadata(file, next((item.value for item in proto.metadata_props if item.key == METADATA_KEY), None))


def save_model(proto: onnx.ModelProto, metadata: Metadata, file: Path) -> None:
    """Writes a graph with its metadata into one file."""
    proto.producer_name = _PRODUCER
    proto.producer_version = metadata.tools.get(_PRODUCER, "")
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    with writing(file):
        onnx.save_model(proto, str(file), format="protobuf", save_as_external_data=False)
