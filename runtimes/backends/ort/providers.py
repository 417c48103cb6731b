"""Which of ONNX Runtime's execution providers serves a device, and with which options.

`tensorrt` is the TensorRT provider of onnxruntime-gpu. `tensorrt-rtx` is NVIDIA's plugin, a separate package that works with
any onnxruntime. Both build engines when the file is opened, for profiles that come from the file's metadata. They keep them
in a cache under the file's digest. Operators that TensorRT does not take run on the CUDA provider; with the plugin they are
an error.

The TensorRT provider has no option for strong typing. On TensorRT 10 and later it makes a strongly typed network, whose
precision is the graph's, unless one of its flags for lower precision is on (source: its `createNetworkV2` call). From
onnxruntime 1.27 on it makes a weakly typed one for TensorRT 10 in any case (microsoft/onnxruntime 29779, open).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import threading
from collections.abc import Sequence
from importlib import metadata as distributions
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.backends.ort.library import onnxruntime
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile
from detr_export.runtimes.devices import CPU, CUDA, RTX, TENSORRT, Device
from detr_export.runtimes.errors import ArtifactError, BackendError, OutputError, first_line
from detr_export.runtimes.files import make_private_folder

PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
_REGISTERING = threading.Lock()
_SEARCH_PATH = "LD_LIBRARY_PATH"
_STRONGLY_TYPED = (10, 0)  # the first TensorRT for which the provider does without flags
_CONFUSES_CUMSUM = (10, 8)  # the first TensorRT that is known to; no later one is known not to
_CUMSUM = b"\x22\x06CumSum"  # in an ONNX file: `op_type` of a node, which is field 4, and its 6 letters
_LIBRARY = re.compile(rb"libnvinfer\.so\.\d+|nvinfer_\d+\.dll")


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


def refuse_two_installations() -> None:
    """Both packages write the same files, so the order of installation decides which one is in effect.

    Raises:
        BackendError: both are installed.
    """
    if all(_installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'detr-export[gpu]' (or [cpu])"
        )


def linked_tensorrt() -> Optional[tuple[int, int]]:
    """Major and minor number of the TensorRT that ONNX Runtime's provider runs; None where nothing says.

    The provider's file names TensorRT's library, and that library gives its version when it is loaded.
    """
    for provider in (Path(onnxruntime.__file__).parent / "capi").glob("*onnxruntime_providers_tensorrt.*"):
        with contextlib.suppress(OSError, AttributeError):  # not readable, not found by the loader, or no such function
            name = _LIBRARY.search(provider.read_bytes())
            if name is not None:
                number = int(ctypes.CDLL(name.group().decode()).getInferLibVersion())
                major, rest = divmod(number, 10000 if number >= 10000 else 1000)  # 101601 is 10.16.1, and 8503 is 8.5.3
                return major, rest // 100
    return None


def require_right_cumsum(file: Path, tensorrt: Optional[tuple[int, int]]) -> None:
    """Refuses a file with CumSum nodes on a TensorRT that is reported to give two of one tensor the same output.

    It then does so whatever their axes are. Such a pair is DETR's sine encoding. Sources: onnx/onnx-tensorrt 1034 and
    NVIDIA/TensorRT 4551. Nothing compares what ONNX Runtime builds with the checkpoint, so outputs would be wrong without a
    word. An unknown TensorRT is refused too: the wheels of onnxruntime-gpu from 1.21 on are made for 10.8 and later.
    TensorRT-RTX is not asked about: 1.7 was seen to compile such a pair to two kernels, each the one that it makes for its
    axis alone.

    Args:
        file: the ONNX file.
        tensorrt: from `linked_tensorrt`.

    Raises:
        ArtifactError: names the file, the versions and the remedy.
    """
    if tensorrt is not None and tensorrt < _CONFUSES_CUMSUM:
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_CUMSUM) < 0:
            return
    which = "a TensorRT of unknown version" if tensorrt is None else f"TensorRT {tensorrt[0]}.{tensorrt[1]}"
    raise ArtifactError(
        f"{file} has CumSum nodes, and TensorRT from 10.8 on may give two of one tensor the same output "
        f"(NVIDIA/TensorRT 4551); onnxruntime {onnxruntime.__version__} runs {which} here; "
        "export the file again with: detr-export onnx"
    )


def provider_list(
    device: Device, profiles: Sequence[ShapeProfile], precision: str, cache: Path, tensorrt: Optional[tuple[int, int]] = None
) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, in the order in which ONNX Runtime offers them the graph.

    Args:
        device: any but `tensorrt-rtx`; `add_rtx` adds that one.
        profiles: shapes of all inputs, for TensorRT.
        precision: the precision of the file.
        cache: a folder for engines.
        tensorrt: from `linked_tensorrt`, for TensorRT. An unknown one counts as strongly typed.
    """
    index = {"device_id": str(device.index)}
    if device.kind == CPU:
        return [(PROVIDERS[CPU], {})]
    if device.kind == CUDA:
        return [(PROVIDERS[CUDA], index)]
    weakly_typed = tensorrt is not None and tensorrt < _STRONGLY_TYPED
    options = {
        **index,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": str(int(weakly_typed and precision == "fp16")),
        "trt_int8_enable": str(int(weakly_typed and precision == "int8")),
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


def _imported_plugin() -> Any:
    """NVIDIA's package. Its import sets LD_LIBRARY_PATH, which is put back: it has no effect in a process that runs already,
    but the programs that this process starts would take their libraries from there.
    """
    before = os.environ.get(_SEARCH_PATH)
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError:
        raise BackendError(
            "the TensorRT-RTX plugin is not installed; run: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
        ) from None
    finally:
        if before is None:
            os.environ.pop(_SEARCH_PATH, None)
        else:
            os.environ[_SEARCH_PATH] = before
    return plugin


def add_rtx(options: Any, device: Device, profiles: Sequence[ShapeProfile], cache: Path) -> None:
    """Adds NVIDIA's TensorRT-RTX plugin to session options, and registers it in this process the first time.

    Raises:
        BackendError: the plugin is not installed, does not load, or finds no such GPU.
    """
    plugin = _imported_plugin()
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
        ArtifactError: the folder cannot be made, or another user could put engines into it, which are code.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "detr-export" / "ort" / sha256
    try:
        for place in (folder.parent.parent, folder.parent, folder):
            make_private_folder(place, "set XDG_CACHE_HOME to a folder of your own")
    except OutputError as error:
        raise ArtifactError(f"the engine cache {folder} cannot be used: {error}") from error
    return folder


def _installed(distribution: str) -> bool:
    try:
        distributions.version(distribution)
    except distributions.PackageNotFoundError:
        return False
    return True


def _devices(name: str) -> list[Any]:
    return [item for item in onnxruntime.get_ep_devices() if item.ep_name == name]
