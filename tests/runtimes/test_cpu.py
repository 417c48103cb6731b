"""Which instruction sets are read, and what is said of int8."""

from __future__ import annotations

from pathlib import Path

import pytest

from detr_export.runtimes.cpu import instruction_sets, int8_note


@pytest.mark.parametrize(
    ("flags", "found", "note"),
    [
        ("flags\t\t: fpu avx avx2 fma", ["avx2"], "no instructions for int8"),
        ("flags : avx2 avx512f avx512_vnni", ["avx2", "avx512_vnni", "avx512f"], "has AVX-512 VNNI, so int8"),
        ("flags : avx2 avx_vnni", ["avx2", "avx_vnni"], "has AVX-VNNI, so int8"),
        ("flags : amx_int8 avx512_vnni", ["amx_int8", "avx512_vnni"], "has AMX and AVX-512 VNNI, so int8"),
        ("Features\t: fp asimd asimddp", ["asimd", "asimddp"], "no instructions for int8"),
        ("processor : 0", [], "is unknown"),
    ],
)
def test_what_linux_lists(flags: str, found: list[str], note: str, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\n{flags}\nbugs : none\n")
    assert instruction_sets(file) == found
    assert note in int8_note(file)
    assert "on a GPU int8 takes TensorRT" in int8_note(file)


def test_where_linux_does_not_tell(tmp_path: Path) -> None:
    assert instruction_sets(tmp_path / "none") == []
    assert "whether this CPU has instructions for int8 is unknown" in int8_note(tmp_path / "none")
