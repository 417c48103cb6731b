"""Which of ONNX Runtime's execution providers serves a device, and with which options.

`tensorrt` is the TensorRT provider of onnxruntime-gpu. `tensorrt-rtx` is NVIDIA's plugin, a separate package that works with
any onnxruntime. Both build engines when the file is opened, for profiles that come from the file's metadata. They keep them
in a cache under the file's digest. Operators that TensorRT does not take run on the CUDA provider; with the plugin they are
an error.
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
    """Refuses a device if this onnxruntime does not have its provider.

    Raises:
        BackendError: names the package that has it.
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
    """Providers with their options, in the order in which ONNX Runtime offers them the graph.

    Args:
        device: any but `tensorrt-rtx`; `add_rtx` adds that one.
        profiles: shapes of all inputs, for TensorRT.
        precision: the precision of the file.
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
    """Profiles in the providers' form, `name:1x3x800x1066,...`. Where a name comes again, the next profile begins."""

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

    # The library is registered once in a process
    name = plugin.get_ep_name()
    with _REGISTERING:
        try:
            if not _devices(name):
                onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # onnxruntime's exceptions have no common base class but Exception
            raise BackendError(
                f"the TensorRT-RTX plugin does not load: {first_line(error)}; run detr-export doctor"
            ) from error

    # The GPU, with what the plugin is told
    found = _devices(name)
    if device.index >= len(found):
        raise BackendError(
            f"the TensorRT-RTX plugin sees {len(found)} GPUs, but {device} was asked for; check with nvidia-smi"
        )
    settings = {"nv_runtime_cache_path": str(cache), **profile_options(profiles, "nv")}
    options.add_provider_for_devices([found[device.index]], settings)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # an operator that it does not take is an error


def engine_cache(sha256: str) -> Path:
    """The folder for the engines of a file. Makes it if it is missing.

    Raises:
        ArtifactError: the folder cannot be made.
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
