"""Reads protobuf's format, in which ONNX files are, without protobuf.

It has fields, each with a number, and a value that is an integer or a piece of known length. A piece that is not wanted is
skipped. Source: "Encoding" in the documentation of protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

Value = Union[int, memoryview]
_VARINT, _EIGHT_BYTES, _PIECE, _FOUR_BYTES = 0, 1, 2, 5  # wire types


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of a message, in order: number and value.

    Raises:
        ValueError, IndexError: this is not a message, or it is cut off.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field has no number")
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _PIECE:
            length, at = _varint(message, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError("a field has an unknown type")
        if length > len(message) - at:
            raise ValueError("the message is cut off")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("an integer is too long")


def piece(value: Value) -> memoryview:
    """A value that is a message, text or bytes. Raises TypeError for an integer."""
    if not isinstance(value, memoryview):
        raise TypeError("a number stands where a message should")
    return value


def text(value: Value) -> str:
    """A value that is text. Raises TypeError or UnicodeDecodeError for others."""
    return str(piece(value), "utf-8")
