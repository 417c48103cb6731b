"""The files beside an ONNX file that hold its weights: looked at before a runtime reads them.

A runtime waits for a pipe, and says in many lines or none what else is wrong. Source of the numbers: `onnx.proto` of onnx.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.files import require_regular
from detr_export.runtimes.limits import current
from detr_export.runtimes.protobuf import Value, fields, piece, text

_GRAPH, _FUNCTION = 7, 25  # of a model
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # of a graph
_FUNCTION_NODE = 7  # of a function
_ATTRIBUTE = 5  # of a node
# Of an attribute: a tensor and tensors, a graph and graphs, a sparse tensor and sparse tensors
_TENSOR, _TENSORS, _SUBGRAPH, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 10, 6, 11, 22, 23
_VALUES, _INDICES = 1, 2  # of a sparse tensor
_NAME, _EXTERNAL = 8, 13  # of a tensor
_KEY, _TEXT = 1, 2  # of an entry
_DIGITS = 18  # of an offset or length


def require_external_data(file: Path, reader: str) -> None:
    """Refuses an ONNX file whose weights lie where they must not, or are not there; see `external_files`."""
    external_files(file, reader)


def external_files(file: Path, reader: str) -> tuple[str, ...]:
    """The files beside an ONNX file that hold its weights: their names, relative to its folder.

    Args:
        file: the ONNX file.
        reader: what reads it next, for messages.

    Raises:
        ArtifactError: the file cannot be read or is no ONNX model; or it names another file that is outside of its folder,
            is missing, is no regular file, or is too short.
    """
    require_regular(file, ArtifactError)
    try:
        with file.open("rb") as stream:
            # The map is not closed by hand: after an error there are still views of it.
            tensors = list(_tensors(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))))
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, LookupError) as error:  # also of an empty file, which cannot be mapped
        raise ArtifactError(f"{file} cannot be loaded by {reader}: it is damaged, or not an ONNX model") from error
    for name, entries in tensors:
        _require_beside(file, name, entries)
    return tuple(sorted({entries["location"] for _, entries in tensors}))


def _tensors(model: memoryview) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and entries of each tensor that lies in another file."""
    for number, value in fields(model):
        if number in (_GRAPH, _FUNCTION):
            yield from _of_graph(piece(value), (_NODE,) if number == _GRAPH else (_FUNCTION_NODE,), current().nesting)


def _of_graph(graph: memoryview, nodes: tuple[int, ...], levels: int) -> Iterator[tuple[str, dict[str, str]]]:
    if levels == 0:
        raise ValueError("the graphs are nested too deeply")
    for number, value in fields(graph):
        if number in nodes:
            for inner, attribute in fields(piece(value)):
                if inner == _ATTRIBUTE:
                    yield from _of_attribute(piece(attribute), levels)
        elif nodes == (_NODE,) and number == _INITIALIZER:
            yield from _of_tensor(value)
        elif nodes == (_NODE,) and number == _SPARSE_INITIALIZER:
            yield from _of_sparse(value)


def _of_attribute(attribute: memoryview, levels: int) -> Iterator[tuple[str, dict[str, str]]]:
    for number, value in fields(attribute):
        if number in (_TENSOR, _TENSORS):
            yield from _of_tensor(value)
        elif number in (_SUBGRAPH, _SUBGRAPHS):
            yield from _of_graph(piece(value), (_NODE,), levels - 1)
        elif number in (_SPARSE, _SPARSES):
            yield from _of_sparse(value)


def _of_sparse(sparse: Value) -> Iterator[tuple[str, dict[str, str]]]:
    for number, value in fields(piece(sparse)):
        if number in (_VALUES, _INDICES):
            yield from _of_tensor(value)


def _of_tensor(tensor: Value) -> Iterator[tuple[str, dict[str, str]]]:
    name, entries = "", {}
    for number, value in fields(piece(tensor)):
        if number == _NAME:
            name = text(value)
        elif number == _EXTERNAL:
            entry = dict(fields(piece(value)))
            entries[text(entry[_KEY])] = text(entry[_TEXT])
    if entries:
        yield name, entries


def _require_beside(file: Path, name: str, entries: dict[str, str]) -> None:
    where = f"{file}: the weights of {shown(name)} are in {shown(entries.get('location', ''))}"
    location = entries.get("location", "")
    absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    if not location or absolute or ".." in PureWindowsPath(location).parts:
        raise ArtifactError(f"{where}; expected a file in the folder of the ONNX file")
    sizes = [entries.get(key, "0") or "0" for key in ("offset", "length")]
    for key, size in zip(("offset", "length"), sizes):
        if not (size.isascii() and size.isdigit() and len(size) <= _DIGITS):
            raise ArtifactError(f"{where}, and their {key} is {shown(size)}; expected a number of bytes")
    beside = file.parent / location
    try:
        require_regular(beside, ArtifactError)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}; copy it beside the ONNX file") from error
    found, needed = beside.stat().st_size, sum(map(int, sizes))
    if found < needed:
        raise ArtifactError(f"{where}, which has {found} bytes; expected at least {needed}; copy it again")
