"""What an exported file says about itself: one JSON document inside an ONNX file, or beside an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.errors import ArtifactError

METADATA_KEY = "detr_export"  # key of the entry in ONNX's metadata_props
FLOAT, UINT8, IMAGE = "float", "uint8", "image"  # values of `Metadata.input`
RGB, BGR = "rgb", "bgr"
MATMUL, OPERATOR = "matmul", "operator"
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
            ArtifactError: the text is not JSON, lacks a field, or has a format that is newer than this version reads.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
            if version > FORMAT_VERSION:
                raise ArtifactError(
                    f"the file's metadata has format {version}; this detr-export reads {FORMAT_VERSION}, update it"
                )
            known = {item.name for item in fields(cls)}
            values = {name: value for name, value in values.items() if name in known}
            values["id2label"] = {int(index): str(name) for index, name in values["id2label"].items()}
            values["ranges"] = {name: _as_range(limits) for name, limits in values.get("ranges", {}).items()}
            for name in ("processor", "source", "tools", "parity"):
                if not isinstance(values.get(name) or {}, dict):
                    raise TypeError(f"{name} is not an object")
            if values.get("end_to_end") is not None:
                values["end_to_end"] = EndToEnd(**{item.name: values["end_to_end"][item.name] for item in fields(EndToEnd)})
            if values.get("quantization") is not None:
                known = {item.name for item in fields(Quantization)}
                found = {name: value for name, value in values["quantization"].items() if name in known}
                values["quantization"] = Quantization(**found)
            values["label_ids_to_fuse"] = tuple(values.get("label_ids_to_fuse", ()))
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"the file's metadata is damaged: {error!r}; export it again") from error


def read_metadata(file: Path, text: Optional[str]) -> Optional[Metadata]:
    """Reads the document that was found in a file, None if there was none. Errors name the file.

    Raises:
        ArtifactError: as `Metadata.from_json`.
    """
    try:
        return None if text is None else Metadata.from_json(text)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from error


def _as_range(limits: Any) -> Range:
    low, high = limits
    return int(low), None if high is None else int(high)
