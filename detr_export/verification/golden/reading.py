"""Reads a folder of golden data, and trusts nothing in it."""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.runtimes.documents import parse, shown
from detr_export.runtimes.errors import ArtifactError, InputError, first_line
from detr_export.runtimes.limits import require_at_most
from detr_export.verification.array_file import read_arrays
from detr_export.verification.golden import (
    DTYPES,
    FORMAT_VERSION,
    INDEX,
    MAX_RANK,
    Golden,
    GoldenCase,
    check_case,
    check_head,
    check_tolerances,
)

MENDED_BY = "write the golden data again: detr-export onnx CHECKPOINT --golden DIR --overwrite"
_HEADER_BYTES = 4096  # of an array in an `.npz` file, at most
_WORDS = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def read_golden(folder: str | Path) -> Golden:
    """Reads golden data, and checks all of it: the index, each file's length and values, and each `.npz` file.

    Args:
        folder: what `--golden` wrote.

    Returns:
        The cases with their arrays, which are the caller's and have the byte order of this machine.

    Raises:
        ArtifactError: something is missing, damaged, or not what the index says; the message names the file and the field.
    """
    index = Path(folder) / INDEX
    try:
        document = _read_index(index)
        cases: list[GoldenCase] = []
        for position, entry in enumerate(_field(document, "cases", list)):
            cases.append(_read_case(Path(folder), f"cases[{position}]", entry, cases[0] if cases else None))
        _check_files(document)
        if not cases:
            raise ArtifactError("cases is empty; expected at least one")
        golden = Golden(
            model=_field(document, "model", str),
            source=_read_source(_field(document, "source", dict)),
            kind=_field(document, "kind", str),
            tolerances=_field(document, "tolerances", dict),
            cases=tuple(cases),
        )
        check_head(golden.model, golden.kind)
        check_tolerances(golden.tolerances, cases[0])
        return golden
    except ArtifactError as error:
        raise ArtifactError(f"{index}: {error}; {MENDED_BY}") from error
    except OSError as error:
        why = f"{error.filename or 'a file'} cannot be read: {error.strerror or error}"
        raise ArtifactError(f"{index}: {why}; {MENDED_BY}") from error


def listed_files(document: Any) -> list[str]:
    """The names of all files that an index lists, itself included.

    Raises:
        ArtifactError: it is not the index of golden data, of whatever version.
    """
    _field(document, "format_version", int)
    files = [INDEX]
    for position, case in enumerate(_field(document, "cases", list)):
        where = f"cases[{position}]"
        files.append(_field(case, "npz", str, where))
        for role in ("inputs", "outputs"):
            for name, entry in _field(case, role, dict, where).items():
                files.append(_field(entry, "file", str, f"{where}.{role}.{name}"))
    return files


def parse_index(text: str) -> Any:
    """An index as JSON.

    Raises:
        ArtifactError: the text is not JSON, or a name is in one object twice.
    """
    parse(text, "it", ArtifactError)  # within bounds, so that the standard library's parser, which sees twins, can read it
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except ValueError as error:
        raise ArtifactError(f"it is not JSON: {first_line(error)}") from error


def _read_index(file: Path) -> Any:
    if not file.is_file():
        raise ArtifactError("the file does not exist, so its folder is not one of golden data")
    require_at_most("document_bytes", file.stat().st_size, "its size in bytes", ArtifactError)
    try:
        document = parse_index(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ArtifactError(f"it is not UTF-8: {first_line(error)}") from error
    version = _field(document, "format_version", int)
    if version > FORMAT_VERSION:
        raise ArtifactError(f"format_version is {version}; this detr-export reads {FORMAT_VERSION}, update it")
    if version != FORMAT_VERSION:
        raise ArtifactError(f"format_version is {version}; expected {FORMAT_VERSION}")
    return document


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twin = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ArtifactError(f"the name {shown(twin)} is in one object twice; expected once")
    return found


def _check_files(document: Any) -> None:
    """No two entries share a name or a file; some file systems do not tell capitals from small letters."""
    for what, names in (
        ("name", [_field(case, "name", str) for case in document["cases"]]),
        ("file", listed_files(document)),
    ):
        counts = Counter(name.casefold() for name in names)
        twin = next((name for name in names if counts[name.casefold()] > 1), None)
        if twin is not None:
            raise ArtifactError(f"the {what} {shown(twin)} is in cases twice; expected different ones")


def _read_source(source: Mapping[str, Any]) -> dict[str, str]:
    name, digest = _field(source, "name", str, "source"), _field(source, "sha256", str, "source")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ArtifactError(f"source.sha256 is {shown(digest)}; expected 64 hexadecimal digits")
    return {"name": name, "sha256": digest}


def _read_case(folder: Path, where: str, entry: Any, first: GoldenCase | None) -> GoldenCase:
    """One case from its raw files. Its `.npz` file must hold the same."""
    arrays = {
        role: {
            name: _read_raw(folder, f"{where}.{role}.{name}", about)
            for name, about in _field(entry, role, dict, where).items()
        }
        for role in ("inputs", "outputs")
    }
    case = GoldenCase(_field(entry, "name", str, where), arrays["inputs"], arrays["outputs"])
    check_case(case, first or case)
    packed = _file(folder, f"{where}.npz", _field(entry, "npz", str, where))
    expected = {**case.inputs, **case.outputs}
    try:
        found = read_arrays(packed, sum(array.nbytes + _HEADER_BYTES for array in expected.values()))
    except InputError as error:
        raise ArtifactError(f"{where}.npz: {error}") from error
    if set(found) != set(expected):
        raise ArtifactError(f"{where}.npz: {packed} has {', '.join(sorted(found))}; expected {', '.join(sorted(expected))}")
    for name, array in expected.items():
        same_kind = found[name].dtype.name == array.dtype.name and found[name].shape == array.shape
        if not (same_kind and np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")):
            raise ArtifactError(f"{where}.npz: {name} in {packed} is not what its raw file holds; expected the same array")
    return case


def _read_raw(folder: Path, where: str, about: Any) -> np.ndarray:
    """The array of one raw file."""
    dtype, shape = _field(about, "dtype", str, where), _field(about, "shape", list, where)
    if dtype not in DTYPES:
        raise ArtifactError(f"{where}.dtype is {shown(dtype)}; expected one of {', '.join(DTYPES)}")
    sizes = [size for size in shape if isinstance(size, int) and not isinstance(size, bool) and size >= 1]
    if sizes != shape or not 1 <= len(shape) <= MAX_RANK:
        raise ArtifactError(f"{where}.shape is {_shown(shape)}; expected 1 to {MAX_RANK} whole numbers, each at least 1")
    file = _file(folder, f"{where}.file", _field(about, "file", str, where))
    little = np.dtype(dtype).newbyteorder("<")
    expected, found = math.prod(shape) * little.itemsize, file.stat().st_size
    if found != expected:
        raise ArtifactError(f"{where}: {file} has {found} bytes; expected {expected} for {dtype} {tuple(shape)}")
    return np.fromfile(file, dtype=little).reshape(shape).astype(dtype)


def _file(folder: Path, where: str, name: str) -> Path:
    """A file of the folder. It may not lie elsewhere, also not by way of a link."""
    if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise ArtifactError(f"{where} is {shown(name)}; expected the name of a file in the folder itself")
    file = folder / name
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        raise ArtifactError(f"{where}: {file} is missing") from None  # so the name is one that a file can have
    except OSError as error:  # a name that is too long
        raise ArtifactError(f"{where}: {shown(name)} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{where}: {file} is not a regular file; expected one in the folder itself")
    return file


def _field(values: Any, name: str, kind: type, where: str = "") -> Any:
    """A field of an object, which must be of a kind."""
    at = f"{where}.{name}" if where else name
    if not isinstance(values, dict):
        raise ArtifactError(f"{where or 'the document'} is {_shown(values)}; expected an object")
    if name not in values:
        raise ArtifactError(f"{at} is missing; expected {_WORDS[kind]}")
    value = values[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArtifactError(f"{at} is {_shown(value)}; expected {_WORDS[kind]}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
