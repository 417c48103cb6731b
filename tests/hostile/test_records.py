"""What is read back: arrays, text in an ONNX file; and how much memory a document takes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from detr_export.runtimes.documents import read_document
from detr_export.runtimes.errors import AnnotationError, ArtifactError, InputError
from detr_export.runtimes.opening import open_session
from detr_export.verification.array_file import read_arrays
from tests.fuzz.seeds import metadata, tiny_graph
from tests.fuzz.target import OutOfRangeError
from tests.fuzz.trying import bounded_memory


def _npz(header: str, data: bytes = b"") -> bytes:
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin-1") + data
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pixel_values.npy", member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': 'x', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': 3, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1",
        "{'descr': '''",
        "  {\n {",
        "(((((",
        "\0",
        "",
        "[" * 5000,
    ],
    ids=lambda header: header[-24:],
)
def test_arrays_with_a_damaged_header_are_refused(header: str, tmp_path: Path) -> None:
    file = tmp_path / "arrays.npz"
    file.write_bytes(_npz(header))
    with (
        pytest.raises(InputError, match=r"arrays.npz is damaged or holds objects: .*expected an .npz file"),
        bounded_memory(1 << 30),
    ):
        read_arrays(file)


@pytest.mark.parametrize("text", [b"pixel_values", b"logits", b"batch", b"detr_export", b"detection"])
def test_text_in_an_onnx_file_that_is_not_utf8_is_refused(text: bytes, tmp_path: Path) -> None:
    file, content = tmp_path / "model.onnx", tiny_graph(metadata())
    assert text in content
    file.write_bytes(content.replace(text, b"\xff" + text[1:]))
    with pytest.raises(ArtifactError, match=r"model.onnx cannot be loaded by ONNX Runtime: .*utf-8"):
        open_session(file)


def test_a_small_document_takes_little_memory(tmp_path: Path) -> None:
    """However large one may be."""
    file = tmp_path / "instances.json"
    file.write_text("[1]")
    with bounded_memory(1 << 28):
        assert read_document(file, AnnotationError, "annotation_bytes") == [1]


def test_more_memory_than_allowed_is_seen() -> None:
    """So that the test above can fail."""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("this system does not say how much memory a process has")
    with pytest.raises(MemoryError), bounded_memory(1 << 28):
        raise OutOfRangeError(str(np.zeros(1 << 29, np.uint8)[0]))
