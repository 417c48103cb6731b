"""What a model's own process and the one that started it tell each other: a JSON document and arrays, over pipes.

Nothing here can run code: whoever breaks out of a model into its process gets no further by what it sends.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import IO, Any, Optional

import numpy as np

from detr_export.runtimes.documents import Size, parse, typed
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.session import DTYPES

_LENGTH = struct.Struct("<Q")
_SENT = tuple[str, str, list[Size]]  # name, dtype and shape
_SENDER = "the model's process"


def send(stream: IO[bytes], document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a document and arrays. Raises OSError or ValueError if nobody reads them."""
    described = [[name, array.dtype.name, array.shape] for name, array in arrays.items()]
    head = json.dumps({"document": document, "arrays": described}).encode()
    stream.write(_LENGTH.pack(len(head)) + head)
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes]) -> Optional[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The next document and its arrays; None if the other side has ended.

    Raises:
        BackendError: it is no such message.
    """
    length = _read(stream, _LENGTH.size)
    if length is None:
        return None
    size = _LENGTH.unpack(length)[0]
    require_at_most("document_bytes", size, f"a message of {_SENDER} in bytes", BackendError)
    text = _read(stream, size)
    if text is None:
        return None
    message = typed(parse(bytes(text), _SENDER, BackendError), dict[str, Any], _SENDER, BackendError)
    arrays = {}
    for name, dtype, shape in typed(message.get("arrays"), list[_SENT], _SENDER, BackendError):
        if dtype not in DTYPES:
            raise BackendError(f"{_SENDER} sent {dtype!r:.40}; expected one of {', '.join(DTYPES)}")
        content = _read(stream, math.prod(shape) * np.dtype(dtype).itemsize)
        if content is None:
            return None
        arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    return typed(message.get("document"), dict[str, Any], _SENDER, BackendError), arrays


def _read(stream: IO[bytes], size: int) -> Optional[bytearray]:
    """So many bytes; None if the stream ends before. The array over them can be written to."""
    content = bytearray()
    while len(content) < size:
        piece = stream.read(min(size - len(content), 1 << 24))
        if not piece:
            return None
        content += piece
    return content
