"""Which instruction sets this CPU has, as far as they matter for a model's speed, and what that means for int8."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

_CPUINFO = Path("/proc/cpuinfo")
_PREFIXES = ("avx2", "avx512", "avx_vnni", "amx", "asimd", "i8mm")  # what the names that matter begin with
_INT8 = {  # sums of products of bytes in one instruction
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
}


def instruction_sets(cpuinfo: Path = _CPUINFO) -> Optional[tuple[str, ...]]:
    """Linux's names of the instruction sets, sorted; None where Linux does not tell.

    Args:
        cpuinfo: the file of Linux that lists them.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), None)
    return None if flags is None else tuple(sorted(flag for flag in flags if flag.startswith(_PREFIXES)))


def int8_note(cpuinfo: Path = _CPUINFO) -> str:
    """What int8 files are worth here, in one line for people."""
    gpu = "on a GPU int8 takes TensorRT, and a file with --int8-float fp16"
    found = instruction_sets(cpuinfo)
    if found is None:
        return f"whether this CPU has instructions for int8 is unknown; {gpu}"
    names = [name for flag, name in _INT8.items() if flag in found]
    if names:
        return f"this CPU has {' and '.join(names)}, so int8 with fp32 around it is faster than fp32; {gpu}"
    return (
        "this CPU has no instructions for int8 such as AVX-512 VNNI: an int8 file is smaller, and detr-bench says whether "
        f"it is faster; {gpu}"
    )
