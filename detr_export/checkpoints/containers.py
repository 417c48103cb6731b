"""What weight files say of themselves, read before any weight: a safetensors file's header, and a zip archive's directory.

A safetensors file begins with the length of its header, 8 bytes, and the header, which is JSON: dtype, shape and place of
each tensor. torch.save writes a zip archive, whose members are not compressed, or (until version 1.6) a series of pickles.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detr_export.checkpoints.tensors import MAX_RANK, named
from detr_export.runtimes.documents import Size, parse, shown, typed
from detr_export.runtimes.errors import CheckpointError, first_line
from detr_export.runtimes.limits import require_at_most

_LENGTH_BYTES = 8
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}
_METADATA = "__metadata__"

_ZIP_START = b"PK\x03\x04"
# The record that ends a zip archive, and what stands before it in a large one (APPNOTE.TXT, 4.3.14 to 4.3.16).
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LONGEST_COMMENT, _LOCATOR_BYTES = 22, 65_535, 20
_TORCHSCRIPT = "constants.pkl"  # only a program has it; torch.load refuses it before it reads anything


@dataclass
class _Entry:
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]  # from the end of the header


def safetensors_shapes(file: Path) -> dict[str, Sequence[int]]:
    """The shapes of a safetensors file's tensors, from its header alone, which is checked as a whole.

    Raises:
        CheckpointError: the file is truncated, or its header is no such header.
    """
    size = file.stat().st_size
    where = f"{file} is truncated or not a safetensors file"
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise CheckpointError(f"{where}: its header has {shown(length)} bytes, and the file {size}")
        require_at_most("document_bytes", length, f"the size of the header of {file} in bytes", CheckpointError)
        header = parse(stream.read(length), f"the header of {file}", CheckpointError)
    metadata = header.pop(_METADATA, {}) if isinstance(header, dict) else {}
    typed(metadata, dict[str, str], f"{where}: {_METADATA}", CheckpointError)
    entries = typed(header, dict[str, _Entry], where, CheckpointError)
    require_at_most("tensors", len(entries), f"the number of tensors of {file}", CheckpointError)

    # Each tensor begins where the one before it ends, and the last ends with the file.
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        what = f"{where}: {named(name)}"
        if entry.dtype not in _ITEM_BYTES:
            raise CheckpointError(f"{what} has dtype {shown(entry.dtype)}; expected one of {', '.join(_ITEM_BYTES)}")
        if len(entry.shape) > MAX_RANK:
            raise CheckpointError(f"{what} has {len(entry.shape)} dimensions; expected at most {MAX_RANK}")
        if begin != position:
            raise CheckpointError(f"{what} has data_offsets[0] {begin}; expected {position}, where the one before it ends")
        if end - begin != math.prod(entry.shape) * _ITEM_BYTES[entry.dtype]:
            raise CheckpointError(f"{what} has {end - begin} bytes; expected those of {entry.dtype} {entry.shape}")
        position = end
    if position != size - _LENGTH_BYTES - length:
        found = size - _LENGTH_BYTES - length
        raise CheckpointError(f"{where}: its tensors have {position} bytes by its header, and {found} in the file")
    return {name: entry.shape for name, entry in entries.items()}


def is_archive(file: Path) -> bool:
    """Whether a file of torch.save is a zip archive. Then its directory is checked: sizes, and that nothing is compressed.

    Raises:
        CheckpointError: the archive is truncated, or is not one that torch.save wrote.
    """
    size = file.stat().st_size
    require_at_most("checkpoint_bytes", size, f"the size of {file} in bytes", CheckpointError)
    with file.open("rb") as stream:
        if stream.read(len(_ZIP_START)) != _ZIP_START:
            return False
    length = _directory_bytes(file)
    require_at_most("document_bytes", length, f"the size of the directory of {file} in bytes", CheckpointError)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise _damaged(file, first_line(error)) from error
    if any(member.filename.rpartition("/")[2] == _TORCHSCRIPT for member in members):
        return True
    require_at_most("tensors", len(members), f"the number of members of {file}", CheckpointError)
    for member in members:
        what = f"the member {named(member.filename)}"
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _damaged(file, f"{what} is compressed; torch.save compresses nothing")
        if member.filename.endswith(".pkl"):
            require_at_most("document_bytes", member.file_size, f"the size of {what} of {file} in bytes", CheckpointError)
    total = sum(member.file_size for member in members)
    if total > size:
        raise _damaged(file, f"its members have {shown(total)} bytes by its directory, and the file {size}")
    return True


def _directory_bytes(file: Path) -> int:
    """How long a zip archive says that its directory is, which is read as a whole."""
    with file.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - _END_BYTES - _LONGEST_COMMENT - _LOCATOR_BYTES))
        tail = stream.read()
        at = tail.rfind(_END)
        if at < 0 or at + _END_BYTES > len(tail):
            raise _damaged(file, "it is a zip archive without an end")
        length = struct.unpack_from("<L", tail, at + 12)[0]
        locator = at - _LOCATOR_BYTES
        if locator < 0 or tail[locator : locator + 4] != _LOCATOR64:
            return length
        stream.seek(min(struct.unpack_from("<Q", tail, locator + 8)[0], end))
        record = stream.read(56)
        if len(record) < 56 or record[:4] != _END64:
            raise _damaged(file, "it is a zip archive without an end")
        return max(length if length != 0xFFFFFFFF else 0, struct.unpack_from("<Q", record, 40)[0])


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} is truncated or not a PyTorch file: {why}; copy or download it again")
