"""Reads JSON documents that somebody else wrote: bounded first, then parsed, then typed.

What a file says about itself is not believed before it has the right type and range. The types are msgspec's, strictly: true
is no integer, 1.5 is no count, "3" is no number, and JSON has no NaN. An error names the file, the field, what was found and
what was expected.
"""

from __future__ import annotations

import copy
import os
import re
import stat
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, Union

import msgspec
from msgspec import Meta

from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.limits import current, require_at_most

T = TypeVar("T")

_INT64 = 2**63 - 1

# Types of fields. A limit that can be raised is checked by who reads the field, with `limits.require_at_most`.
Count = Annotated[int, Meta(ge=1, le=_INT64)]
Size = Annotated[int, Meta(ge=0, le=_INT64)]
Integer = Annotated[int, Meta(ge=-_INT64, le=_INT64)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]  # finite, and so are its square and what float32 makes of it
Positive = Annotated[float, Meta(gt=0, le=1e15)]
NotNegative = Annotated[float, Meta(ge=0, le=1e15)]
Probability = Annotated[float, Meta(ge=0, le=1)]

_PROBLEM = re.compile(r"(?P<expected>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|\[(?P<any>\.\.\.)\]")
_QUOTED = re.compile(r"`([^`]*)`")
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
_SHOWN = 60  # characters of a value in a message


def read_document(file: Union[str, os.PathLike[str]], kind: type[DetrError], limit: str = "document_bytes") -> Any:
    """The JSON document in a file.

    Args:
        file: a regular file. A pipe or device is refused, not waited for.
        kind: the error to raise.
        limit: the name of the limit that its size has. Nesting and integers are bounded in those of `document_bytes` alone,
            as looking at each value of a file of annotations takes long; who reads such a file looks at what it uses.

    Raises:
        FileNotFoundError: there is no such file, and the caller knows what it is needed for.
        kind: it cannot be read, is too large, or is not JSON.
    """
    return parse(read_content(file, kind, limit), os.fspath(file), kind, limit)


def read_content(
    file: Union[str, os.PathLike[str]], kind: type[DetrError], limit: str = "document_bytes", what: str = "a JSON document"
) -> bytes:
    """The bytes of a file; arguments and errors as of `read_document`, and `what` is what the file should be."""
    where = os.fspath(file)
    try:
        # A pipe that nobody writes to would be waited for, but for O_NONBLOCK.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise kind(f"{where} is not a regular file; expected {what}")
            require_at_most(limit, found.st_size, f"the size of {where} in bytes", kind)
            content = stream.read(found.st_size + 1)  # so much memory is taken at once
            require_at_most(limit, len(content), f"the size of {where} in bytes", kind)  # it may have grown
            return content
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise kind(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from error


def parse(text: Union[str, bytes], where: str, kind: type[DetrError], limit: str = "document_bytes") -> Any:
    """The JSON document that a text is; arguments and errors as of `read_document`.

    Args:
        text: the document; bytes are UTF-8.
        where: what it is, for messages.
    """
    require_at_most(limit, len(text), f"the size of {where} in bytes", kind)
    try:
        document = msgspec.json.decode(text)
    except RecursionError:
        raise kind(f"{where} is nested too deeply; expected at most {current().nesting} levels") from None
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: half of a surrogate pair
        raise kind(f"{where} is not JSON: {error}") from error
    if limit == "document_bytes":
        _require_bounds(document, where, kind)
    return document


def typed(value: Any, schema: type[T], where: str, kind: type[DetrError]) -> T:
    """A parsed document as what it should be.

    Args:
        value: of plain JSON types; tuples may take the place of lists.
        schema: a type that `msgspec.convert` knows.
        where: the file, for messages; empty where the caller's caller names it.
        kind: the error to raise.

    Raises:
        kind: a field is missing, or has the wrong type or range. The message has the path to it.
    """
    try:
        return msgspec.convert(value, schema, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise kind(f"{where}: {_explained(error, value, schema)}" if where else _explained(error, value, schema)) from error


def shown(value: Any) -> str:
    """A short form of a value for messages, on one line. It never fails, whatever the value is."""
    if isinstance(value, (dict, list, tuple)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value).replace("\n", " ")  # of an array, for example
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _require_bounds(document: Any, where: str, kind: type[DetrError]) -> None:
    """Refuses deep nesting, over which later code would recurse, and integers of more than 64 bits."""
    nesting, level = current().nesting, [document]
    for _ in range(nesting + 1):
        if not level:
            return
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise kind(f"{where} has {shown(value)}; expected at most 64")
        level = inner
    raise kind(f"{where} is nested too deeply; expected at most {nesting} levels (--limit nesting=N)")


def _explained(error: Exception, document: Any, schema: Any) -> str:
    """msgspec's message as `FIELD is FOUND; expected EXPECTED`."""
    match = _PROBLEM.fullmatch(str(error))
    if match is None or isinstance(error, RecursionError):
        return "it is nested too deeply"
    value, name = _found(document, schema, (match["path"] or "").partition("$")[2])
    name = name.lstrip(".") or "it"
    expected = _QUOTED.sub(_in_words, match["expected"])
    if expected.startswith("Object missing required field"):
        return f"{name} lacks {expected.rpartition(' ')[2]}"
    expected = expected.partition(", got ")[0]
    return f"{name} is {shown(value)}; {expected[:1].lower()}{expected[1:]}"


def _in_words(types: re.Match[str]) -> str:
    """msgspec's `int | null` in the words of a message."""
    return " or ".join(_TYPES.get(name, name) for name in types[1].split(" | "))


def _found(document: Any, schema: Any, path: str) -> tuple[Any, str]:
    """The value at a path, and its name. msgspec does not say which entry of an object it means, so that is searched."""
    value, name = document, ""
    for step in _STEP.finditer(path):
        if step["name"] is not None and isinstance(value, Mapping):
            value, name = value.get(step["name"]), f"{name}.{step['name']}"
        elif step["index"] is not None and isinstance(value, (list, tuple)):
            value, name = value[int(step["index"])], f"{name}[{step['index']}]"
        elif isinstance(value, Mapping):
            key = _culprit(document, schema, name, value)
            if key is None:
                break
            value, name = value[key], f"{name}[{shown(key)}]"
        else:
            break
    return value, name


def _culprit(document: Any, schema: Any, name: str, mapping: Mapping[str, Any]) -> Any:
    """The key of the first entry that is wrong on its own."""
    try:
        document = copy.deepcopy(document)
    except RecursionError:
        return None
    changed, _ = _found(document, schema, name)
    for key, value in mapping.items():
        changed.clear()
        changed[key] = value
        try:
            msgspec.convert(document, schema, strict=True)
        except msgspec.ValidationError as error:
            if "[...]" in str(error):
                return key
    return None
