"""Keeps what OpenVINO compiled in a folder, so that a file opens faster the next time.

An entry is named after everything that it depends on: the content of the file, OpenVINO's version, the settings and the CPU.
So a changed file, a new version and another machine each have an entry of their own. OpenVINO was seen to crash the process
on a damaged entry of its own cache, so entries have a checksum here, which is compared before OpenVINO sees them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from detr_export.runtimes.cpu import available_cores, cpu_flags
from detr_export.runtimes.errors import missing_extra
from detr_export.runtimes.files import make_private_folder, replacing, sha256_of_files, user_path, writing

try:
    import openvino
except ImportError as error:
    raise missing_extra("openvino", "openvino") from error

SUFFIX = ".openvino"
_CPU = "CPU"
_HEADER = struct.Struct("<16sQI")  # the format's name, the length of what follows, and its CRC-32
_FORMAT = b"detr-export ov 1"


def compile_cached(core: Any, file: Path, settings: Mapping[str, Any], folder: str | Path) -> Any:
    """The `openvino.CompiledModel` of a file for the CPU: from the folder, or compiled and put there.

    Several threads and processes may share the folder: an entry appears whole, or not at all. An entry that is damaged, or
    that OpenVINO refuses, is replaced.

    Args:
        core: an `openvino.Core`.
        file: the ONNX file.
        settings: what `compile_model` gets.
        folder: where entries are; it is made if it is missing. Entries are code for the CPU.

    Raises:
        RuntimeError: OpenVINO cannot compile the file.
        OutputError: the entry cannot be written; or the folder is another user's, or others may write to it.
    """
    make_private_folder(user_path(folder), "give another --cache folder")
    entry = user_path(folder) / f"{_name(core, file, settings)}{SUFFIX}"
    found = _read(entry)
    if found is not None:
        with contextlib.suppress(RuntimeError):
            return core.import_model(io.BytesIO(found), _CPU, dict(settings))
    model = core.compile_model(str(file), _CPU, dict(settings))
    content = io.BytesIO()
    model.export_model(content)
    with replacing(entry) as temporary, writing(entry), temporary.open("wb") as stream:
        stream.write(_header_of(content.getbuffer()))
        stream.write(content.getbuffer())
    return model


def _name(core: Any, file: Path, settings: Mapping[str, Any]) -> str:
    depends_on = {
        "file": sha256_of_files([file]),
        "openvino": openvino.__version__,
        "settings": {name: str(value) for name, value in settings.items()},
        "cpu": [core.get_property(_CPU, "FULL_DEVICE_NAME"), platform.machine(), *cpu_flags()],
        "capabilities": sorted(core.get_property(_CPU, "OPTIMIZATION_CAPABILITIES")),
        "cores": available_cores(),
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def _header_of(content: Union[bytes, memoryview]) -> bytes:
    return _HEADER.pack(_FORMAT, len(content), zlib.crc32(content))


def _read(entry: Path) -> Optional[bytes]:
    """The content of a whole entry; None if it is missing, cannot be read, or is damaged."""
    try:
        with entry.open("rb") as stream:
            form, length, checksum = _HEADER.unpack(stream.read(_HEADER.size))
            content = stream.read()
    except (OSError, struct.error):
        return None
    whole = form == _FORMAT and len(content) == length and zlib.crc32(content) == checksum
    return content if whole else None
