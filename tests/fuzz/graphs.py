"""Targets that read ONNX files: ONNX Runtime opens and runs them on the CPU, and `inspect` reads them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from tests.fuzz.mutation import MOST_BYTES, mutate_bytes, mutate_json
from tests.fuzz.target import Function, Target

_VARINT, _BYTES = 0, 2  # wire types of protobuf
_FIXED = {1: 8, 5: 4}  # bytes of the other two
_NUMBERS = (0, 1, 2, 7, 127, 255, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1)
Field = tuple[int, int, "int | bytes"]  # number, wire type, value


def _session(folder: Path) -> Function:
    from detr_export.runtimes.opening import open_session
    from detr_export.runtimes.predictor import Predictor

    file = folder / "model.onnx"
    picture = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)

    def read(data: bytes) -> None:
        file.write_bytes(data)
        with open_session(file, threads=1) as session:
            Predictor(session).detect(picture)

    return read


def _inspection(folder: Path) -> Function:
    from detr_export.graphs.inspection import inspect_onnx

    file = folder / "model.onnx"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        inspect_onnx(file).summary()

    return read


def mutate_protobuf(data: bytes, draw: random.Random) -> bytes:
    """A field of a message, however deep, with all lengths around it corrected; the schema need not be known."""
    if draw.random() < 0.2:
        return mutate_bytes(data, draw)
    for _ in range(draw.choice((1, 1, 2))):
        fields = _fields(data)
        if not fields:
            return mutate_bytes(data, draw)
        data = _written(_changed(fields, draw))
    return data[:MOST_BYTES]


def _changed(fields: list[Field], draw: random.Random) -> list[Field]:
    at = draw.randrange(len(fields))
    number, wire, value = fields[at]
    kind = draw.randrange(20)
    if kind == 0:
        return fields[:at] + fields[at + 1 :]
    if kind == 1:
        return [*fields, fields[at]]
    if kind == 2:
        return [*fields[:at], (draw.randrange(1, 30), wire, value), *fields[at + 1 :]]
    if isinstance(value, int):
        value = draw.choice((*_NUMBERS, value + 1, max(value - 1, 0)))
    elif value[:1] in (b"{", b"["):
        value = mutate_json(value, draw)
    elif wire == _BYTES and draw.random() < 0.9 and (inner := _fields(value)):
        value = _written(_changed(inner, draw))
    else:
        changed = mutate_bytes(value, draw)
        value = changed if wire == _BYTES else changed[: len(value)].ljust(len(value), b"\0")
    return [*fields[:at], (number, wire, value), *fields[at + 1 :]]


def _fields(data: bytes) -> list[Field] | None:
    """The fields of a message; None if it is none."""
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            value: int | bytes
            if wire == _VARINT:
                value, at = _varint(data, at)
            else:
                length = _FIXED.get(wire)
                if length is None:
                    if wire != _BYTES:
                        return None
                    length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            if not number or at > len(data):
                return None
            fields.append((number, wire, value))
    except IndexError:
        return None
    return fields


def _written(fields: list[Field]) -> bytes:
    parts = bytearray()
    for number, wire, value in fields:
        parts += _varint_bytes(number << 3 | wire)
        if isinstance(value, int):
            parts += _varint_bytes(value)
        else:
            parts += (_varint_bytes(len(value)) if wire == _BYTES else b"") + value
    return bytes(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def _varint_bytes(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


TARGETS = (
    Target("onnx", _session, mutate_protobuf, 30_000, 360),
    Target("inspect", _inspection, mutate_protobuf, 30_000, 600),
)
