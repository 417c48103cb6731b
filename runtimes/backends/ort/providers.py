"""Which of ONNX Runtime's execution providers a device is, and what it is told.

`tensorrt` is the TensorRT provider of onnxruntime-gpu, `tensorrt-rtx` NVIDIA's plugin, a package of its own beside any
onnxruntime. Both build engines when the file is opened, for profiles derived from the file's metadata, and keep them in a
cache under the file's own digest. What they do not take runs on the CUDA provider, or, with the plugin, is an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile
from detr_export.runtimes.devices import CPU, CUDA, RTX, TENSORRT, Device
from detr_export.runtimes.errors import ArtifactError, BackendError, first_line, missing_extra

try:
    import onnxruntime
except ImportError as error:
    raise missing_extra("onnxruntime", "cpu") from error

PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
_REGISTERING = threading.Lock()


def require_provider(device: Device) -> None:
    """Refuses a device whose provider this onnxruntime does not have.

    Raises:
        BackendError: says which package has it.
    """
    if device.kind in (CPU, RTX) or PROVIDERS[device.kind] in onnxruntime.get_available_providers():
        return
    name = "CUDA" if device.kind == CUDA else "TensorRT"
    raise BackendError(
        f"this onnxruntime has no {name} provider; run: pip uninstall -y onnxruntime && pip install 'detr-export[gpu]'"
    )


def provider_list(
    device: Device, profiles: Sequence[ShapeProfile], precision: str, cache: Path
) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, in the order in which they are offered the graph.

    Args:
        device: not `tensorrt-rtx`, which is added by `add_rtx`.
        profiles: shapes of all inputs, for TensorRT.
        precision: the file's.
        cache: a folder for engines.
    """
    index = {"device_id": str(device.index)}
    if device.kind == CPU:
        return [(PROVIDERS[CPU], {})]
    if device.kind == CUDA:
        return [(PROVIDERS[CUDA], index)]
    options = {
        **index,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_int8_enable": str(int(precision == "int8")),
        **profile_options(profiles, "trt"),
    }
    return [(PROVIDERS[TENSORRT], options), (PROVIDERS[CUDA], index)]


def profile_options(profiles: Sequence[ShapeProfile], prefix: str) -> dict[str, str]:
    """Profiles in the providers' form, `name:1x3x800x1066,...`; a name that comes again belongs to the next profile."""

    def joined(which: int) -> str:
        return ",".join(
            f"{name}:{'x'.join(map(str, sizes[which]))}" for profile in profiles for name, sizes in profile.inputs.items()
        )

    return {f"{prefix}_profile_{word}_shapes": joined(which) for which, word in enumerate(("min", "opt", "max"))}


def add_rtx(options: Any, device: Device, profiles: Sequence[ShapeProfile], cache: Path) -> None:
    """Adds NVIDIA's TensorRT-RTX plugin to session options, and registers it in this process the first time.

    Raises:
        BackendError: the plugin is not installed, does not load, or finds no such GPU.
    """
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError:
        raise BackendError(
            "the TensorRT-RTX plugin is not installed; run: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
        ) from None
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} takes no plugins; run: pip install -U 'onnxruntime>=1.24'"
        )
    name = plugin.get_ep_name()
    with _REGISTERING:
        try:
            if not _devices(name):
                onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
            raise BackendError(
                f"the TensorRT-RTX plugin does not load: {first_line(error)}; run detr-export doctor"
            ) from error
    found = _devices(name)
    if device.index >= len(found):
        raise BackendError(
            f"the TensorRT-RTX plugin sees {len(found)} GPUs, and {device} was asked for; check with nvidia-smi"
        )
    settings = {"nv_runtime_cache_path": str(cache), **profile_options(profiles, "nv")}
    options.add_provider_for_devices([found[device.index]], settings)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # what it does not take is an error


def engine_cache(sha256: str) -> Path:
    """The folder for engines of a file, made when it is missing.

    Raises:
        ArtifactError: it cannot be made.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "detr-export" / "ort" / sha256
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"the engine cache {folder} cannot be made: {error.strerror}; set XDG_CACHE_HOME") from error
    return folder


def _devices(name: str) -> list[Any]:
    return [item for item in onnxruntime.get_ep_devices() if item.ep_name == name]
