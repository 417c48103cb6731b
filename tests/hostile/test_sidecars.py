"""What lies beside engines: every field with values that nobody should believe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from detr_export.runtimes.backends.tensorrt.admission import check_verified
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, read_sidecar, sidecar_path, source_of
from detr_export.runtimes.errors import ArtifactError, DetrError
from tests.hostile.onnx_files import DOCUMENT
from tests.hostile.test_metadata import HOSTILE, REMOVED, changed, places

SIDECAR: dict[str, Any] = {
    "format_version": 2,
    "sha256": "a" * 64,
    "source_sha256": "b" * 64,
    "build_key": "c" * 64,
    "library": "tensorrt",
    "library_version": "10.9.0.34",
    "cuda": "12.8",
    "gpu": "NVIDIA H200",
    "targets": [[9, 0]],
    "precision": "fp16",
    "fallback": None,
    "version_compatible": False,
    "hardware_compatible": False,
    "profiles": ["1x32x32:1x32x32:1x64x64"],
    "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 4, 3]}],
    "layers": {"fp16": 100, "fp32": 3},
    "attestation": {"layers": {"fp16": 100}},
    "kernels": None,
    "verified": True,
    "metadata": DOCUMENT,
}
FIRST = {name: value for name, value in SIDECAR.items() if name not in ("library", "library_version", "targets", "verified")}
FIRST = {**FIRST, "format_version": 1, "tensorrt": "10.0.1", "compute_capability": [8, 6]}

CASES: list[tuple[dict[str, Any], str, Any, str]] = [
    (SIDECAR, "format_version", True, "format_version is true; expected an integer"),
    (SIDECAR, "format_version", "2", "format_version is '2'; expected an integer"),
    (SIDECAR, "format_version", 3, "format 3 is newer than this detr-export reads; update it"),
    (SIDECAR, "format_version", 0, "format_version is 0; expected an integer >= 1"),
    (SIDECAR, "format_version", REMOVED, "lacks format_version"),
    (SIDECAR, "sha256", None, "sha256 is null; expected text"),
    (SIDECAR, "sha256", 5, "sha256 is 5; expected text"),
    (SIDECAR, "sha256", REMOVED, "lacks sha256"),
    (SIDECAR, "source_sha256", ["b"], "source_sha256 is a list of 1; expected text"),
    (SIDECAR, "build_key", {}, "build_key is an object of 0; expected text"),
    (SIDECAR, "library", 10, "library is 10; expected text"),
    (SIDECAR, "library_version", "", "library_version is ''; expected numbers like 10.9.0"),
    (SIDECAR, "library_version", "new", "library_version is 'new'; expected numbers like 10.9.0"),
    (SIDECAR, "library_version", "9" * 5000, r"library_version is '999.*\.\.\.; expected numbers like 10.9.0"),
    (SIDECAR, "library_version", "10." * 100, r"library_version is '10\..*; expected numbers"),
    (SIDECAR, "library_version", "\u0661.2", "library_version is .*; expected numbers"),
    (SIDECAR, "library_version", 10.9, "library_version is 10.9; expected text"),
    (SIDECAR, "cuda", 12, "cuda is 12; expected text or null"),
    (SIDECAR, "gpu", ["a"], "gpu is a list of 1; expected text or null"),
    (SIDECAR, "targets", None, "targets is null; expected a list"),
    (SIDECAR, "targets", [[9]], r"targets\[0\] is a list of 1; expected a list of length 2"),
    (SIDECAR, "targets", [[9, 0, 0]], r"targets\[0\] is a list of 3; expected a list of length 2"),
    (SIDECAR, "targets", [["9", 0]], r"targets\[0\]\[0\] is '9'; expected an integer"),
    (SIDECAR, "targets", [[9, -1]], r"targets\[0\]\[1\] is -1; expected an integer >= 0"),
    (SIDECAR, "targets", [9.0], r"targets\[0\] is 9.0; expected a list"),
    (SIDECAR, "precision", "fp8", "precision is 'fp8'; expected fp32, fp16 or int8"),
    (SIDECAR, "fallback", 1, "fallback is 1; expected text or null"),
    (SIDECAR, "version_compatible", 1, "version_compatible is 1; expected true or false"),
    (SIDECAR, "hardware_compatible", "no", "hardware_compatible is 'no'; expected true or false"),
    (SIDECAR, "profiles", "1x1x1", "profiles is '1x1x1'; expected a list"),
    (SIDECAR, "profiles", [1], r"profiles\[0\] is 1; expected text"),
    (SIDECAR, "inputs", {}, "inputs is an object of 0; expected a list"),
    (SIDECAR, "inputs", [1], r"inputs\[0\] is 1; expected an object"),
    (SIDECAR, "inputs", [{}], r"inputs\[0\] lacks name"),
    (SIDECAR, "inputs", [{"name": 1, "dtype": "bool", "shape": []}], r"inputs\[0\].name is 1; expected text"),
    (
        SIDECAR,
        "inputs",
        [{"name": "x", "dtype": "object", "shape": []}],
        "dtype of 'x' in inputs is 'object'; expected float32",
    ),
    (SIDECAR, "inputs", [{"name": "x", "dtype": "O8", "shape": []}], "dtype of 'x' in inputs is 'O8'; expected float32"),
    (SIDECAR, "inputs", [{"name": "x", "dtype": "bool", "shape": 3}], r"inputs\[0\].shape is 3; expected a list"),
    (SIDECAR, "inputs", [{"name": "x", "dtype": "bool", "shape": [1.5]}], r"inputs\[0\].shape\[0\] is 1.5; expected"),
    (SIDECAR, "inputs", [{"name": "x", "dtype": "bool", "shape": [-1]}], r"inputs\[0\].shape\[0\] is -1; expected"),
    (SIDECAR, "outputs", [{"name": "x", "dtype": "bool", "shape": [None]}], r"outputs\[0\].shape\[0\] is null; expected"),
    (SIDECAR, "outputs", None, "outputs is null; expected a list"),
    (SIDECAR, "layers", [], "layers is a list of 0; expected an object"),
    (SIDECAR, "layers", {"fp16": "many"}, r"layers\['fp16'\] is 'many'; expected an integer"),
    (SIDECAR, "layers", {"fp16": -1}, r"layers\['fp16'\] is -1; expected an integer >= 0"),
    (SIDECAR, "attestation", 1, "attestation is 1; expected an object or null"),
    (SIDECAR, "kernels", [], "kernels is a list of 0; expected an object or null"),
    (SIDECAR, "verified", "yes", "verified is 'yes'; expected true or false"),
    (SIDECAR, "verified", 1, "verified is 1; expected true or false"),
    (SIDECAR, "verified", None, "verified is null; expected true or false"),
    (SIDECAR, "metadata", None, "metadata is null; expected an object"),
    (SIDECAR, "metadata", {}, "the file's metadata is damaged: it lacks format_version"),
    (SIDECAR, "metadata.task", "x", "the file's metadata is damaged: task is 'x'; expected detection"),
    (SIDECAR, "metadata.ranges.batch", [0, 1], r"ranges\['batch'\]\[0\] is 0; expected an integer >= 1"),
    (SIDECAR, "metadata.processor.size", "big", "image settings are not usable"),
    (FIRST, "tensorrt", 8, "tensorrt is 8; expected text"),
    (FIRST, "tensorrt", REMOVED, "lacks tensorrt"),
    (FIRST, "compute_capability", 8.6, "compute_capability is 8.6; expected a list"),
    (FIRST, "compute_capability", [8], "compute_capability is a list of 1; expected a list of length 2"),
    (FIRST, "metadata", 1, "metadata is 1; expected an object"),
]


def beside(folder: Path, text: str | bytes) -> Path:
    """An engine with a sidecar."""
    engine = folder / "a.engine"
    engine.write_bytes(b"plan")
    sidecar_path(engine).write_bytes(text if isinstance(text, bytes) else text.encode())
    return engine


@pytest.mark.parametrize(
    ("document", "path", "value", "message"), CASES, ids=[f"{path}-{str(value)[:20]}" for _, path, value, _ in CASES]
)
def test_a_field_is_refused(document: dict[str, Any], path: str, value: Any, message: str, tmp_path: Path) -> None:
    engine = beside(tmp_path, changed(document, path, value))
    for read in (read_sidecar, source_of, lambda file: check_verified(file, True)):
        with pytest.raises(
            ArtifactError, match=rf"a\.engine\.json: .*{message}.*; build the engine again: detr-export trt"
        ) as e:
            read(engine)
        assert "\n" not in str(e.value)


TEXTS = {
    "nothing": (b"", "is not JSON"),
    "half": (b"{", "is not JSON"),
    "list": (b"[]", "it is a list of 0; expected an object"),
    "not UTF-8": (b"\xff\xfe", "is not JSON"),
    "NaN": (b'{"format_version": NaN}', "is not JSON"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "a long integer": (b'{"format_version": ' + b"1" * 5000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text_is_refused(name: str, tmp_path: Path) -> None:
    text, message = TEXTS[name]
    with pytest.raises(ArtifactError, match=rf"a\.engine\.json.*{message}"):
        read_sidecar(beside(tmp_path, text))


@pytest.mark.skipif(os.name != "posix", reason="pipes with names and devices")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    place = sidecar_path(beside(tmp_path, ""))
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match=r"a\.engine\.json.*(is not a regular file|Is a directory)"):
        read_sidecar(tmp_path / "a.engine")


@pytest.mark.parametrize("document", [SIDECAR, FIRST], ids=["format 2", "format 1"])
def test_the_documents_that_were_changed_are_read(document: dict[str, Any], tmp_path: Path) -> None:
    """Or the cases above would show nothing."""
    sidecar = read_sidecar(beside(tmp_path, json.dumps(document)))
    assert sidecar is not None
    assert EngineSidecar.from_json(sidecar.to_json()) == sidecar
    assert (sidecar.verified, sidecar.targets) == (True, ((9, 0) if document is SIDECAR else (8, 6),))
    assert document is FIRST or json.loads(sidecar.to_json()) == document


def test_no_value_of_any_field_gets_past_our_errors() -> None:
    for path in places({name: value for name, value in SIDECAR.items() if name != "metadata"}):
        for value in HOSTILE:
            try:
                sidecar = EngineSidecar.from_json(changed(SIDECAR, path, value))
            except DetrError:
                continue
            assert EngineSidecar.from_json(sidecar.to_json()) == sidecar
