"""Values that have no business in a document, and a copy of a document for each of its fields and each of them."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from detr_export.runtimes.errors import DetrError


def nested(depth: int) -> Any:
    """Lists inside each other."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "-1": -1,
    "0": 0,
    "1": 1,
    "1.5": 1.5,
    "-0.5": -0.5,
    "1e300": 1e300,
    "-1e300": -1e300,
    "1e-300": 1e-300,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "2^31": 2**31,
    "2^63": 2**63,
    "2^70": 2**70,
    "-2^70": -(2**70),
    "10^5000": 10**5000,
    "empty text": "",
    "'3'": "3",
    "'true'": "true",
    "'nan'": "nan",
    "'../x'": "../x",
    "null byte": "a\0b",
    "new line": "a\nb",
    "long text": "x" * 10**6,
    "empty list": [],
    "[[]]": [[]],
    "[0]": [0],
    "[-1]": [-1],
    "[null]": [None],
    "['a']": ["a"],
    "[nan]": [float("nan")],
    "[1e300] * 3": [1e300] * 3,
    "[2^70]": [2**70],
    "long list": [1] * 10_000,
    "{}": {},
    "{'': null}": {"": None},
    "{'a': {'b': 1}}": {"a": {"b": 1}},
    "{'0': 0}": {"0": 0},
    "{'height': -1, 'width': 1e9}": {"height": -1, "width": 10**9},
    "nested 500 deep": nested(500),
}


def mutated(document: dict[str, Any], value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The document with one field after the other replaced, also those of objects and lists in it, with the field's name."""
    for path in _paths(document):
        changed = copy.deepcopy(document)
        place: Any = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        yield ".".join(map(str, path)), changed


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*before, key)
        yield from _paths(inner, (*before, key))


def read_or_refused(read: Callable[[Any], Any], document: Any, field: str) -> Any:
    """What `read` makes of a document, or None if it refuses it with an error of one short line. Nothing else may happen."""
    try:
        return read(document)
    except DetrError as error:
        message = str(error)
    assert "\n" not in message, field
    assert len(message) < 2000, field
    return None


def as_json(document: Any) -> bytes:
    """The document as JSON, with what JSON does not have (NaN, infinity) and integers of any length."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(document).encode()
    finally:
        sys.set_int_max_str_digits(before)
