"""Mutations of bytes, of JSON, of lines of text, of files with a JSON header, and of zips around pickles and arrays.

A mutation that knows the format keeps most of a document as it is, so that what is wrong reaches the code behind the parser.
Every one is a function of the input and of a `random.Random`, so that a seed gives the same inputs again.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

MOST_BYTES = 1 << 16  # of an input
_RAW = 0.15  # share of the inputs whose bytes are changed instead
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    63,
    255,
    256,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    10**400,
)
_FLOATS = (0.0, -0.0, 0.5, 1.5, -1.5, 1e-45, 1e-320, 3.5e38, 1e300, -1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "1.5",
    "nan",
    "true",
    "null",
    "\0",
    "a\0b",
    "\n",
    "\ud800",
    "é",
    "\u202e",
    "..",
    "../x",
    "/",
    "/dev/zero",
    "~root",
    "C:\\x",
    "con",
    "a" * 300,
    "%s%n",
    "{0}",
    "__class__",
    "LABEL_0",
)
_WORDS = ("- a", "a:", "[", "&a", "*a", "!!python/name:os", "1_0", "0x1")  # of YAML
_EVERYTHING = ("/", "..")  # as the folder of pictures it is right, and takes long to look through
_BYTES = (b"\0", b"\xff", b"\x80", b"\x7f", b"{", b"[", b'"', b"\\u", b"\n", b"-", b"1e999", b"\xef\xbb\xbf", b"9" * 30)


def hostile_value(draw: random.Random) -> Any:
    """A value that a field does not expect."""
    kind = draw.randrange(12)
    if kind < 3:
        return draw.choice(_NUMBERS)
    if kind < 5:
        return draw.choice(_FLOATS)
    if kind < 7:
        return draw.choice(_TEXTS)
    if kind < 9:
        return draw.choice((None, True, False))
    if kind == 9:
        return draw.choice(([], {}, [[]], [None], [0], [""], {"": ""}, {"0": {}}, [[[[[]]]]], [1, 2], [0.5] * 3, {"a": [1]}))
    if kind == 10:
        value: Any = draw.choice((0, "x", None))
        for _ in range(draw.choice((3, 10, 63, 64, 65, 200))):
            value = [value] if draw.random() < 0.5 else {"a": value}
        return value
    return [draw.choice(_NUMBERS)] * draw.choice((2, 5, 100, 1000))


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flips, overwrites, inserts, deletes, repeats or cuts off, up to four times."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 32))
        kind = draw.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + 1] = draw.choice(_BYTES)
        elif kind == 2:
            changed[at:at] = draw.randbytes(length)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * draw.choice((1, 2, 20))
        elif kind == 5:
            del changed[at:]
        elif kind == 6:  # a number of a header
            number = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF))
            width = draw.choice((2, 4, 8))
            changed[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(width, draw.choice(("little", "big")))
        else:
            other = draw.randrange(len(changed) + 1)
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed[:MOST_BYTES])


def mutate_value(document: Any, draw: random.Random) -> Any:
    """A parsed document with one to three of its values replaced, removed, repeated, renamed or moved."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _collect(document, places)
        if not places or draw.random() < 0.01:
            document = hostile_value(draw)
            continue
        holder, key = draw.choice(places)
        kind = draw.randrange(10)
        if kind < 4:
            holder[key] = hostile_value(draw)
        elif kind == 4:
            del holder[key]
        elif kind == 5:  # nearby: what passes a check of types
            holder[key] = _near(holder[key], draw)
        elif kind == 6 and isinstance(holder, list):
            holder[key:key] = [holder[key]] * draw.choice((1, 1, 2, 50))
        elif kind == 6:
            holder[str(draw.choice((*_TEXTS, *_NUMBERS)))] = holder[key]
        elif kind == 7 and isinstance(holder, dict):
            holder[draw.choice(_TEXTS)] = holder.pop(key)
        elif kind == 8 and isinstance(holder[key], (dict, list)):
            inner = holder[key]
            if isinstance(inner, dict):
                inner[draw.choice(_TEXTS)] = hostile_value(draw)
            else:
                inner.insert(draw.randrange(len(inner) + 1), hostile_value(draw))
        else:  # the value of another field
            other, name = draw.choice(places)
            if not isinstance(other.get(name) if isinstance(other, dict) else other[name : name + 1] or None, (dict, list)):
                holder[key] = other.get(name) if isinstance(other, dict) else holder[key]
    return document


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """A JSON document that stays one, but for some whose bytes change."""
    if draw.random() < _RAW:
        return mutate_bytes(data, draw)
    try:
        document = json.loads(data)
        return json.dumps(mutate_value(document, draw)).encode("utf-8", "surrogatepass")[:MOST_BYTES]
    except (ValueError, RecursionError):
        return mutate_bytes(data, draw)


def mutate_lines(data: bytes, draw: random.Random) -> bytes:
    """Lines of words: a word or a line is replaced, removed or repeated."""
    if draw.random() < _RAW:
        return mutate_bytes(data, draw)
    lines = [line.split(b" ") for line in data.split(b"\n")]
    for _ in range(draw.choice((1, 1, 2, 3))):
        line = draw.choice(lines)
        at = draw.randrange(len(line))
        kind = draw.randrange(5)
        if kind < 3:
            value = draw.choice((*_NUMBERS, *_FLOATS, *_TEXTS, *_WORDS))
            if value in _EVERYTHING:
                continue
            line[at] = str(value).encode("utf-8", "surrogatepass")
        elif kind == 3:
            del line[at]
            line += [b""] if not line else []
        else:
            lines.insert(draw.randrange(len(lines) + 1), list(line))
    return b"\n".join(b" ".join(line) for line in lines)[:MOST_BYTES]


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    """The JSON header of a safetensors file; its length is then written anew, most of the time."""
    if draw.random() < _RAW or len(data) < 8:
        return mutate_bytes(data, draw)
    length = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(data[8 : 8 + length], draw)
    told = len(header) if draw.random() < 0.9 else draw.choice((0, 1, len(header) + 1, 2**32, 2**63, 2**64 - 1))
    return (struct.pack("<Q", told) + header + data[8 + length :])[:MOST_BYTES]


def mutate_zip(data: bytes, draw: random.Random) -> bytes:
    """A member of a zip, such as the pickle in a PyTorch file; the zip is then written anew, with the right checksums."""
    try:
        if draw.random() < _RAW:
            return mutate_bytes(data, draw)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = draw.choice([name for name in members if name.endswith(".pkl")] * 8 + list(members))
        kind = draw.randrange(12)
        if kind == 0:
            del members[name]
        elif kind == 1:
            members[draw.choice(_TEXTS[15:]) + name] = members[name]
        else:
            members[name] = mutate_bytes(members[name], draw)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for member, content in members.items():
                archive.writestr(zipfile.ZipInfo(member), content)
        return buffer.getvalue()[:MOST_BYTES]
    except Exception:  # a damaged zip raises all kinds of errors
        return mutate_bytes(data, draw)


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """All (object, key) and (list, index) of a document, without recursion: it may be nested deeply."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])


def _near(value: Any, draw: random.Random) -> Any:
    """A value of the same type, or one that looks like it."""
    if isinstance(value, bool):
        return draw.choice((not value, int(value)))
    if isinstance(value, int):
        exact = float(value) if abs(value) < 2**63 else value
        return draw.choice((value + 1, value - 1, -value, value * 2, exact, value * 1000, f"{value % 10**20}"))
    if isinstance(value, float):
        return draw.choice((value + 1, -value, value * 1000, value / 1e6, 1 / value if value else 1.0))
    if isinstance(value, str):
        return draw.choice((value.upper(), value + " ", value[1:], value * 3, value + "\0", value[::-1]))
    if isinstance(value, list):
        return draw.choice((value[::-1], value[1:], value + value, value[:1]))
    return value
