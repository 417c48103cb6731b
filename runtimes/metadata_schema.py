"""The types that the fields of a metadata document have, and the names that they may be; see `metadata` for what they mean.

What no code reads is passed over: a document of an older or newer version may hold it in another form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from detr_export.runtimes.documents import Count, NotNegative, Number, Size, shown
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.limits import require_at_most

FLOAT, UINT8, IMAGE = "float", "uint8", "image"
RGB, BGR = "rgb", "bgr"
MATMUL, OPERATOR = "matmul", "operator"

_TASKS = ("detection", "segmentation", "masks")
_PRECISIONS = ("fp32", "fp16", "int8")
_SCOPES = ("backbone", "encoder", "all")
_METHODS = ("minmax", "entropy", "percentile", "mse")
_LIMITS_OF_RANGES = {"height": "edge", "width": "edge", "queries": "queries"}
_ID = re.compile(r"0|[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class VersionSchema:
    """Of which format a document is."""

    format_version: Count


@dataclass
class EndToEndSchema:
    """`EndToEnd`."""

    color: str
    resize: str
    top_k: Count


@dataclass
class DifferencesSchema:
    """What is read of the comparison of an end-to-end file with the plain one."""

    max_abs_diff: dict[str, NotNegative] = field(default_factory=dict)


@dataclass
class ParitySchema:
    """What is read of the comparison with the checkpoint."""

    max_abs_diff: dict[str, NotNegative] = field(default_factory=dict)
    ratio: dict[str, NotNegative] = field(default_factory=dict)
    end_to_end: Optional[DifferencesSchema] = None


@dataclass
class AccuracySchema:
    """What is read of the scores of an int8 file."""

    scores: dict[str, Number] = field(default_factory=dict)
    difference: dict[str, Number] = field(default_factory=dict)
    images: Optional[Size] = None


@dataclass
class QuantizationSchema:
    """`Quantization`."""

    scope: str
    method: str
    images: Count
    float_precision: str
    kept_float: dict[str, str] = field(default_factory=dict)
    float_parity: Optional[ParitySchema] = None
    accuracy: Optional[AccuracySchema] = None


@dataclass
class MetadataSchema:
    """`Metadata`. The keys of `id2label` are text, as all keys of JSON."""

    task: str
    id2label: dict[str, str]
    processor: dict[str, Any]  # the image processor's own class checks it
    pixel_mask: bool
    precision: str = "fp32"
    input: str = FLOAT
    end_to_end: Optional[EndToEndSchema] = None
    mask_head: Optional[str] = None
    quantization: Optional[QuantizationSchema] = None
    opset: Optional[Count] = None
    ranges: dict[str, tuple[Count, Optional[Count]]] = field(default_factory=dict)
    label_ids_to_fuse: list[Size] = field(default_factory=list)
    source: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    parity: Optional[ParitySchema] = None


def require_sense(values: MetadataSchema, where: str) -> None:
    """Refuses what has the right type and yet means nothing: unknown names, ranges that end before they begin.

    Args:
        values: the document.
        where: what it is, for messages.

    Raises:
        ArtifactError: names the field, what was found and what was expected.
    """
    # Names
    require_one_of(values.task, _TASKS, f"{where}: task")
    require_one_of(values.precision, _PRECISIONS, f"{where}: precision")
    require_one_of(values.input, (FLOAT, UINT8, IMAGE), f"{where}: input")
    if values.end_to_end is not None:
        require_one_of(values.end_to_end.color, (RGB, BGR), f"{where}: end_to_end.color")
        require_one_of(values.end_to_end.resize, (MATMUL, OPERATOR), f"{where}: end_to_end.resize")
        require_at_most("queries", values.end_to_end.top_k, f"{where}: end_to_end.top_k", ArtifactError)
    if values.quantization is not None:
        require_one_of(values.quantization.scope, _SCOPES, f"{where}: quantization.scope")
        require_one_of(values.quantization.method, _METHODS, f"{where}: quantization.method")
        require_one_of(values.quantization.float_precision, _PRECISIONS[:2], f"{where}: quantization.float_precision")
    if (values.input == IMAGE) != (values.end_to_end is not None):
        found = "an object" if values.end_to_end is not None else "null"
        raise ArtifactError(
            f"{where}: input is {values.input!r} and end_to_end is {found}; expected both of one kind of file"
        )
    if values.mask_head is not None and _SHA256.fullmatch(values.mask_head) is None:
        raise ArtifactError(f"{where}: mask_head is {shown(values.mask_head)}; expected a SHA-256 of 64 hexadecimal digits")

    # Classes
    require_at_most("labels", len(values.id2label), f"{where}: the number of classes in id2label", ArtifactError)
    for key in values.id2label:
        if _ID.fullmatch(key) is None:
            raise ArtifactError(f"{where}: id2label has the id {shown(key)}; expected an integer of 0 or more")
        require_at_most("labels", int(key), f"{where}: an id of id2label", ArtifactError)
    for label in values.label_ids_to_fuse:
        require_at_most("labels", label, f"{where}: an id of label_ids_to_fuse", ArtifactError)

    # Ranges
    for name, (low, high) in values.ranges.items():
        if high is not None and low > high:
            raise ArtifactError(f"{where}: ranges[{shown(name)}] is {low} to {high}; expected the smaller number first")
        if name in _LIMITS_OF_RANGES:
            require_at_most(_LIMITS_OF_RANGES[name], high or low, f"{where}: the end of ranges[{name!r}]", ArtifactError)


def require_one_of(value: str, names: Sequence[str], what: str) -> None:
    """Refuses a name that is not known.

    Args:
        value: what was found.
        names: what is known.
        what: the file and the field, for the message.

    Raises:
        ArtifactError: names all of that.
    """
    if value not in names:
        raise ArtifactError(f"{what} is {shown(value)}; expected {', '.join(names[:-1])} or {names[-1]}")
