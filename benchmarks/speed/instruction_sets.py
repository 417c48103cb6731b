"""Which instruction sets a CPU has, as far as they matter for speed."""

from __future__ import annotations

from pathlib import Path

_CPU_FLAGS = ("avx2", "avx512", "amx", "asimd")  # what the names of instruction sets that matter begin with


def instruction_sets() -> list[str]:
    """Sorted names as Linux has them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return sorted(flag for flag in flags if flag.startswith(_CPU_FLAGS))
