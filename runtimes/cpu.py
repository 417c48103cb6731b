"""What the CPU can do, as far as the operating system says it."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpu_flags() -> list[str]:
    """Names of the CPU's features, such as `avx2`, sorted. Only Linux lists them; elsewhere there are none."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return sorted(next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), []))
