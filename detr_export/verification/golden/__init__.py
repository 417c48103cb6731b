"""Golden data: inputs, and what the checkpoint answers to them. A port in any language is tested with it.

A folder of golden data holds `index.json`, and for each case one `.npz` file with all its arrays and one raw file for each
array: little endian, C order, without a header. `writing` makes the folder, `reading` checks and reads it, and `tensors`
makes the cases of an exported file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import ArtifactError

INDEX = "index.json"
FORMAT_VERSION = 1  # it is raised when a reader of the older format would misread the folder
TENSORS, END_TO_END = "tensors", "end-to-end"
KINDS = (TENSORS, END_TO_END)
DTYPES = ("uint8", "int32", "int64", "float16", "float32")  # every language has them, or can read them
MAX_RANK = 8

_CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it becomes part of file names
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")  # without a dot: so no two arrays get one file name


@dataclass(frozen=True)
class GoldenCase:
    """One run of the model."""

    name: str  # letters, digits, `.`, `_` and `-`
    inputs: Mapping[str, np.ndarray]  # as the exported file takes them
    outputs: Mapping[str, np.ndarray]  # what the checkpoint answers


@dataclass(frozen=True)
class Golden:
    """A folder of golden data, field by field."""

    model: str  # file name of the export
    source: Mapping[str, str]  # "name" and "sha256" of the checkpoint's weights
    kind: str  # "tensors": the outputs of the network; "end-to-end": detections
    tolerances: Mapping[str, float]  # the largest absolute difference, for each floating-point output; others are exact
    cases: tuple[GoldenCase, ...]
    format_version: int = FORMAT_VERSION


def check_head(model: str, kind: str) -> None:
    """Checks what stands beside the cases.

    Raises:
        ArtifactError: says which field. The caller adds the file.
    """
    if not model or "/" in model:
        raise ArtifactError(f"model is {shown(model)}; expected the name of a file, without a folder")
    if kind not in KINDS:
        raise ArtifactError(f"kind is {shown(kind)}; expected one of {', '.join(KINDS)}")


def check_case(case: GoldenCase, first: GoldenCase) -> None:
    """Checks the names and arrays of a case, and that it has the inputs and outputs of the first one.

    Raises:
        ArtifactError: says which array is wrong. The caller adds the file.
    """
    if not _CASE_NAME.fullmatch(case.name):
        raise ArtifactError(f"a case is named {shown(case.name)}; expected letters, digits, '.', '_' and '-'")
    both = set(case.inputs) & set(case.outputs)
    if both:
        raise ArtifactError(f"case {case.name}: {min(both)} is an input and an output; names must differ")
    for role, arrays, others in (("input", case.inputs, first.inputs), ("output", case.outputs, first.outputs)):
        if not arrays:
            raise ArtifactError(f"case {case.name} has no {role}")
        if dtypes_of(arrays) != dtypes_of(others):
            raise ArtifactError(
                f"case {case.name} has the {role}s {_listed(arrays)}; expected {_listed(others)}, as in case {first.name}"
            )
        for name, array in arrays.items():
            _check_array(f"case {case.name}: {role} {name}", name, array)


def check_tolerances(tolerances: Mapping[str, Any], case: GoldenCase) -> None:
    """Checks that each floating-point output has a tolerance, and nothing else.

    Raises:
        ArtifactError: says which. The caller adds the file.
    """
    floats = {name for name, array in case.outputs.items() if array.dtype.kind == "f"}
    if set(tolerances) != floats:
        raise ArtifactError(
            f"tolerances are for {_some(tolerances)}; expected one for each floating-point output: {_some(floats)}"
        )
    for name, value in tolerances.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
            raise ArtifactError(f"tolerances.{name} is {shown(value)}; expected a number above 0")


def dtypes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The dtypes of arrays, by name."""
    return {name: array.dtype.name for name, array in arrays.items()}


def _check_array(what: str, name: str, array: np.ndarray) -> None:
    if not _ARRAY_NAME.fullmatch(name):
        raise ArtifactError(f"{what} has a strange name; expected letters, digits, '_' and '-'")
    if array.dtype.name not in DTYPES:
        raise ArtifactError(f"{what} is {array.dtype.name}; expected one of {', '.join(DTYPES)}")
    if not 1 <= array.ndim <= MAX_RANK or array.size == 0:
        raise ArtifactError(f"{what} has shape {array.shape}; expected 1 to {MAX_RANK} sizes, each at least 1")
    if not np.isfinite(array).all():
        raise ArtifactError(f"{what} holds values that are not finite")


def _listed(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(dtypes_of(arrays).items()))


def _some(names: Iterable[str]) -> str:
    return ", ".join(name if name.isprintable() else shown(name) for name in sorted(names)[:8]) or "nothing"
