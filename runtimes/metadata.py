"""What an exported file says about itself: one JSON document inside an ONNX file, or beside an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from detr_export.runtimes.documents import parse, typed
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata_schema import (
    BGR,
    FLOAT,
    IMAGE,
    MATMUL,
    OPERATOR,
    RGB,
    UINT8,
    MetadataSchema,
    VersionSchema,
    require_sense,
)

__all__ = [
    "BGR",
    "FLOAT",
    "FORMAT_VERSION",
    "IMAGE",
    "MATMUL",
    "METADATA_KEY",
    "OPERATOR",
    "RGB",
    "UINT8",
    "EndToEnd",
    "Metadata",
    "Quantization",
    "Range",
]

METADATA_KEY = "detr_export"  # key of the entry in ONNX's metadata_props
FORMAT_VERSION = 1  # it is raised when a reader of the older format would misread the document

Range = tuple[int, Optional[int]]  # smallest and largest size, None = no limit


@dataclass(frozen=True)
class EndToEnd:
    """How a file works that takes images as they are and gives boxes in pixels."""

    color: str  # order of the image's channels: "rgb" or "bgr"
    resize: str  # "matmul": two matrix products; "operator": ONNX's Resize, which TensorRT does not read
    top_k: int  # how many queries it returns, the best first


@dataclass(frozen=True)
class Quantization:
    """How a file became int8."""

    scope: str  # which layers are int8: "backbone", "encoder" (all up to the encoder's end) or "all"
    method: str  # how scales follow from values: "minmax", "entropy", "percentile" or "mse"
    images: int  # how many pictures it was calibrated on
    float_precision: str  # what the rest computes in: "fp32" or "fp16"
    kept_float: Mapping[str, str] = field(default_factory=dict)  # modules of the scope that are not int8, with the reasons
    float_parity: Optional[Mapping[str, Any]] = None  # the float graph against the checkpoint; None = not compared
    # Scores of the file and their differences from the checkpoint's, with the number of images; None = not scored
    accuracy: Optional[Mapping[str, Any]] = None


@dataclass(frozen=True)
class Metadata:
    """The document, field by field."""

    task: str  # "detection" or "segmentation"; "masks" of a mask head, see `mask_head`
    id2label: Mapping[int, str]  # names of the classes; the class after the last is "no object"
    processor: Mapping[str, Any]  # the content of preprocessor_config.json
    pixel_mask: bool  # whether the model takes padded batches
    precision: str = "fp32"  # or "fp16" or "int8"
    # The form of `pixel_values`. "float": the processor's arrays, (B, 3, H, W). "uint8": RGB images (B, H, W, 3), which the
    # model scales itself; then `valid_sizes` (height, width) takes the place of a mask. "image": an end-to-end file, which
    # takes `image` (B, H, W, 3) uint8 of any size.
    input: str = FLOAT
    end_to_end: Optional[EndToEnd] = None  # of an end-to-end file
    mask_head: Optional[str] = None  # SHA-256 of the ONNX file that draws the masks, if that is another one
    quantization: Optional[Quantization] = None  # of an int8 file
    opset: Optional[int] = None
    ranges: Mapping[str, Range] = field(default_factory=dict)  # sizes of "batch", "height" and "width" that the model takes
    label_ids_to_fuse: tuple[int, ...] = ()  # classes of stuff; a panoptic map joins their regions
    source: Mapping[str, str] = field(default_factory=dict)  # "name" and "sha256" of the checkpoint's weights
    tools: Mapping[str, str] = field(default_factory=dict)  # versions of the tools that made the file
    parity: Optional[Mapping[str, Any]] = None  # result of the comparison with the checkpoint; None = not compared
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The document as JSON text; `from_json` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Reads the document.

        Raises:
            ArtifactError: the text is not JSON, lacks a field, has one of another type or range, or has a format that is
                newer than this version reads.
        """
        return cls.from_document(parse(text, "the file's metadata", ArtifactError))

    @classmethod
    def from_document(cls, document: Any) -> Metadata:
        """Reads the document after JSON was parsed; errors as of `from_json`."""
        damaged = "the file's metadata is damaged"
        try:
            version = typed(document, VersionSchema, damaged, ArtifactError).format_version
            if version <= FORMAT_VERSION:
                found = typed(document, MetadataSchema, damaged, ArtifactError)
                require_sense(found, damaged)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; export it again") from error
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"the file's metadata has format {version}; this detr-export reads {FORMAT_VERSION}, update it"
            )
        # Comparisons are kept as they are: code that is newer may have written more of them.
        quantization = found.quantization
        return cls(
            task=found.task,
            id2label={int(index): name for index, name in found.id2label.items()},
            processor=found.processor,
            pixel_mask=found.pixel_mask,
            precision=found.precision,
            input=found.input,
            end_to_end=None if found.end_to_end is None else EndToEnd(**asdict(found.end_to_end)),
            mask_head=found.mask_head,
            quantization=None
            if quantization is None
            else Quantization(
                scope=quantization.scope,
                method=quantization.method,
                images=quantization.images,
                float_precision=quantization.float_precision,
                kept_float=quantization.kept_float,
                float_parity=document["quantization"].get("float_parity"),
                accuracy=document["quantization"].get("accuracy"),
            ),
            opset=found.opset,
            ranges=found.ranges,
            label_ids_to_fuse=tuple(found.label_ids_to_fuse),
            source=found.source,
            tools=found.tools,
            parity=document.get("parity"),
            format_version=version,
        )
