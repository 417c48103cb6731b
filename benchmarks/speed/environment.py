"""The machine and the software of a measurement: without them, a number cannot be compared with any other."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata as distributions
from pathlib import Path

from detr_export.benchmarks.speed.report import Environment
from detr_export.runtimes.cpu import available_cores, cpu_name, instruction_sets, require_threads
from detr_export.runtimes.errors import BackendError, missing_extra

try:
    import psutil
except ImportError as error:
    raise missing_extra("psutil", "bench") from error

_PACKAGES = (
    "detr-export",
    "numpy",
    "pillow",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "transformers",
    "timm",
    "pycocotools",
)
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_environment(threads: int) -> Environment:
    """The machine and its software; `threads` is how many one run of a model uses."""
    gpu, driver = gpu_and_driver()
    return Environment(
        cpu=cpu_name(),
        cores=available_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        governor=_read(_GOVERNOR),
        os=platform.platform(),
        python=platform.python_version(),
        gpu=gpu,
        driver=driver,
        versions={name: version for name in _PACKAGES if (version := installed_version(name))},
        threads=threads,
        instruction_sets=instruction_sets(),
    )


def checked_threads(threads: int | None) -> int:
    """The number that was asked for; if that is None, the physical cores that this process may use.

    Raises:
        InputError: the number is below 1, or above the number of cores, which would measure the scheduler.
    """
    cores = available_cores()
    if threads is None:
        return min(psutil.cpu_count(logical=False) or cores, cores)
    require_threads(threads)
    return threads


def gpu_and_driver() -> tuple[str | None, str | None]:
    """Name of the first NVIDIA GPU and version of its driver; None where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or pynvml's own error for a machine without a driver
        return None, None
    try:
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))), str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None, None
    finally:
        pynvml.nvmlShutdown()


def ort_has_cuda() -> bool:
    """Whether there is a GPU, and ONNX Runtime was built for it."""
    if gpu_and_driver()[0] is None:
        return False
    try:
        from detr_export.runtimes.backends.ort.library import onnxruntime
    except BackendError:  # it is not installed
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def installed_version(distribution: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    with contextlib.suppress(distributions.PackageNotFoundError):
        return distributions.version(distribution)
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
