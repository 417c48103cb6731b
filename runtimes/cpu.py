"""What the CPU can do, as far as the operating system says it, and what that means for int8 (only Linux says it); and how
many cores there are."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Optional

from detr_export.runtimes.errors import InputError

_CPUINFO = Path("/proc/cpuinfo")
_SETS = ("avx2", "avx512", "avx_vnni", "amx", "asimd", "i8mm")  # what the names begin with that matter for a model's speed
_INT8 = {  # sums of products of bytes in one instruction
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
}


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """What the CPU is called, as far as this machine says it."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cpu_flags(cpuinfo: Path = _CPUINFO) -> list[str]:
    """Names of the CPU's features, such as `avx2`, sorted; none where they are not listed."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return sorted(next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), []))


def instruction_sets(cpuinfo: Path = _CPUINFO) -> list[str]:
    """Those of the features that change how fast a model runs."""
    return [flag for flag in cpu_flags(cpuinfo) if flag.startswith(_SETS)]


def int8_note(cpuinfo: Path = _CPUINFO) -> str:
    """What int8 files are worth here, in one line for people."""
    gpu = "on a GPU int8 takes TensorRT, and a file with --int8-float fp16"
    found = cpu_flags(cpuinfo)
    if not found:
        return f"whether this CPU has instructions for int8 is unknown; {gpu}"
    names = [name for flag, name in _INT8.items() if flag in found]
    if names:
        return f"this CPU has {' and '.join(names)}, so int8 with fp32 around it is faster than fp32; {gpu}"
    return (
        "this CPU has no instructions for int8 such as AVX-512 VNNI: an int8 file is smaller, and detr-bench says whether "
        f"it is faster; {gpu}"
    )


def available_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and taskset give a process fewer cores than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_threads(threads: Optional[int], name: str = "threads") -> None:
    """Refuses more threads than there are cores: a large number takes memory and time, and gains nothing.

    Args:
        threads: of one run of a model; None leaves the choice to the backend.
        name: what they are called, for the message.

    Raises:
        InputError: it is no integer from 1 to the number of cores.
    """
    cores = available_cores()
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= cores):
        raise InputError(f"{name} is {threads!r:.40}; expected 1 to {cores}, the cores that this process may use")
