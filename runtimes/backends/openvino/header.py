"""What OpenVINO does not tell of an ONNX file: the names of its dimensions, its metadata, and what it would compute wrongly.

They are read off the file, see `protobuf`. A piece that is not wanted is skipped, so weights are never read.
Source of the numbers: `onnx.proto` of onnx.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.protobuf import Value, fields, piece, text
from detr_export.runtimes.session import UNKNOWN

Shape = tuple[Union[int, str], ...]

_GRAPH, _PROPERTIES = 7, 14  # of a model
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of a graph
_OPERATOR, _ATTRIBUTE = 4, 5  # of a node
_ATTRIBUTE_NAME, _INTEGER = 1, 3  # of an attribute
_NAME, _TYPE = 1, 2  # of an input or output
_TENSOR, _SHAPE, _DIMENSION = 1, 2, 1  # of a type, of a tensor, of a shape
_SIZE, _SIZE_NAME = 1, 2  # of a dimension
_KEY, _TEXT = 1, 2  # of a property

_DAMAGED = "it is damaged, or not an ONNX model"


@dataclass(frozen=True)
class Header:
    """The inputs and outputs of an ONNX file, in its order, and its custom metadata."""

    inputs: dict[str, Shape]  # older files also list their weights
    outputs: dict[str, Shape]
    properties: dict[str, str]
    antialiased: bool  # whether a Resize of the graph smooths what it makes smaller


def read_header(file: Path) -> Header:
    """Reads the header of an ONNX file.

    Raises:
        ArtifactError: the file cannot be read, is cut off, or is not an ONNX model.
    """
    try:
        with file.open("rb") as stream:
            # The map is not closed by hand: after an error there are still views of it.
            header = _read(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, LookupError) as error:  # also of an empty file, which cannot be mapped
        raise ArtifactError(f"{file} cannot be loaded by OpenVINO: {_DAMAGED}") from error
    if not header.outputs:
        raise ArtifactError(f"{file} cannot be loaded by OpenVINO: {_DAMAGED}")
    return header


def _read(model: memoryview) -> Header:
    inputs: dict[str, Shape] = {}
    outputs: dict[str, Shape] = {}
    properties: dict[str, str] = {}
    antialiased = False
    for number, value in fields(model):
        if number == _GRAPH:
            for inner, item in fields(piece(value)):
                if inner == _NODE:
                    antialiased = antialiased or _antialiases(piece(item))
                elif inner in (_INPUT, _OUTPUT):
                    described = dict(fields(piece(item)))
                    (inputs if inner == _INPUT else outputs)[text(described[_NAME])] = _shape(described.get(_TYPE))
        elif number == _PROPERTIES:
            entry = dict(fields(piece(value)))
            properties[text(entry.get(_KEY, memoryview(b"")))] = text(entry.get(_TEXT, memoryview(b"")))
    return Header(inputs, outputs, properties, antialiased)


def _antialiases(node: memoryview) -> bool:
    """Whether a node is a Resize with `antialias`."""
    found = list(fields(node))
    if not any(number == _OPERATOR and text(value) == "Resize" for number, value in found):
        return False
    attributes = [dict(fields(piece(value))) for number, value in found if number == _ATTRIBUTE]
    return any(text(item[_ATTRIBUTE_NAME]) == "antialias" and item.get(_INTEGER, 0) != 0 for item in attributes)


def _shape(kind: Value | None) -> Shape:
    """The dimensions of a type; none if it is not a tensor, or its rank is not known."""
    for wanted in (_TENSOR, _SHAPE):
        kind = None if kind is None else dict(fields(piece(kind))).get(wanted)
    if kind is None:
        return ()
    return tuple(_size(piece(item)) for number, item in fields(piece(kind)) if number == _DIMENSION)


def _size(dimension: memoryview) -> int | str:
    found = dict(fields(dimension))
    if _SIZE in found:
        size = found[_SIZE]
        return size if isinstance(size, int) and size < 1 << 63 else UNKNOWN  # the upper half is that of negative numbers
    return text(found[_SIZE_NAME]) or UNKNOWN if _SIZE_NAME in found else UNKNOWN
