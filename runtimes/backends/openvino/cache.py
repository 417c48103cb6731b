"""Keeps what OpenVINO compiled, so that a file opens faster the next time.

OpenVINO writes into its cache in place, and it looks a file up by path and time alone. So each file gets a folder of its own
under the digest of its content, and that folder moves into place when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_export.runtimes.files import sha256_of_files


def compile_cached(core: Any, file: Path, device: str, settings: Mapping[str, Any]) -> Any:
    """Compiles an ONNX file, or takes it from the cache. Without a cache that can be written to, it compiles.

    Args:
        core: an `openvino.Core`.
        file: an ONNX file that holds all of its weights.
        device: OpenVINO's name of the device.
        settings: properties of the compiled model.

    Returns:
        The `openvino.CompiledModel`.

    Raises:
        RuntimeError: OpenVINO cannot compile the file.
    """
    folder = _folder(core, file, device, settings)
    if folder.is_dir():
        with contextlib.suppress(RuntimeError):  # such as a folder that this user may not read
            return core.compile_model(str(file), device, {**settings, "CACHE_DIR": str(folder)})
        return core.compile_model(str(file), device, dict(settings))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".", dir=folder.parent)
    except OSError:
        return core.compile_model(str(file), device, dict(settings))
    try:
        with contextlib.suppress(RuntimeError):  # such as a full disk; if it was the file, the call below says so
            model = core.compile_model(str(file), device, {**settings, "CACHE_DIR": temporary})
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(temporary, folder)
            return model
        return core.compile_model(str(file), device, dict(settings))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _folder(core: Any, file: Path, device: str, settings: Mapping[str, Any]) -> Path:
    """Where a file's compiled form lies: named by its content, and by all else that decides what is compiled."""
    home = os.environ.get("XDG_CACHE_HOME")
    path = file.resolve()
    key = [
        sha256_of_files([file]),
        str(path),  # by this and the time OpenVINO finds it again in the folder
        path.stat().st_mtime_ns,
        core.get_versions(device)[device].build_number,
        core.get_property(device, "FULL_DEVICE_NAME"),
        sorted(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
        sorted((name, str(value)) for name, value in settings.items()),
    ]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return (Path(home) if home else Path.home() / ".cache") / "detr-export" / "openvino" / name
