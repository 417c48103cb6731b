"""What is read back: recipes, logs, arrays, golden data, text in an ONNX file; and how much memory a document takes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_export.runtimes.documents import read_document
from detr_export.runtimes.errors import AnnotationError, ArtifactError, InputError
from detr_export.runtimes.opening import open_session
from detr_export.training.options import TrainingOptions
from detr_export.training.training_log import LOG_NAME, TrainingLog
from detr_export.verification.array_file import read_arrays
from detr_export.verification.golden.reading import read_golden
from tests.fuzz.seeds import metadata, tiny_graph
from tests.fuzz.target import OutOfRangeError
from tests.fuzz.trying import bounded_memory

RECIPE = TrainingOptions().to_dict()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 1.5, "epochs is 1.5; expected an integer"),
        ("epochs", "3", "epochs is '3'; expected an integer"),
        ("epochs", True, "epochs is true; expected an integer"),
        ("epochs", None, "epochs is null; expected an integer"),
        ("epochs", -1, "epochs is -1; expected at least 0"),
        ("batch_size", 0, "batch_size is 0; expected at least 1"),
        ("task", "segment", "task is 'segment'; expected one of detection, panoptic"),
        ("task", ["detection"], "task is a list of 1; expected text"),
        ("scale", [0.6], "scale is a list of 1; expected a list of length 2"),
        ("scale", [], "scale is a list of 0; expected a list of length 2"),
        ("scale", {"0": 1}, "scale is an object of 1; expected a list"),
        ("scale", 0.5, "scale is 0.5; expected a list"),
        ("scale", ["a", "b"], r"scale\[0\] is 'a'; expected a number"),
        ("scale", [1.0, 0.5], r"scale is \(1.0, 0.5\); expected two numbers"),
        ("learning_rate", [1e-4], "learning_rate is a list of 1; expected a number"),
        ("learning_rate", float("nan"), "learning_rate is nan; expected a number from 0"),
        ("learning_rate", float("inf"), "learning_rate is inf; expected a number from 0"),
        ("drop", 1.5, "drop is 1.5; expected a number from 0 to 1"),
        ("ema", 1, "ema is 1.0; expected a number from 0 to below 1"),
        ("patience", "1", "patience is '1'; expected an integer or null"),
        ("patience", 0, "patience is 0; expected at least 1"),
        ("warmup", [], "warmup is a list of 0; expected an integer or null"),
        ("jointly", 1, "jointly is 1; expected true or false"),
        ("seed", {}, "seed is an object of 0; expected an integer"),
        ("epoch", 3, "the options of the run have 'epoch'; expected those of TrainingOptions"),
        ("\n", 3, r"the options of the run have '\\n'; expected those"),
        ("a" * 500, 3, r"the options of the run have 'a+\.\.\.; expected those"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_recipe_is_typed(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions.from_dict({**RECIPE, field: value})


@pytest.mark.parametrize("options", [TrainingOptions(), TrainingOptions(task="panoptic", warmup=None, scale=(0.5, 2))])
def test_a_recipe_comes_back(options: TrainingOptions) -> None:
    assert TrainingOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


HEAD = "stage,epoch,step,learning_rate,loss"


@pytest.mark.parametrize(
    "content",
    [
        f"{HEAD}\ndetector,1,x,0.1,1\n".encode(),
        f"{HEAD}\ndetector,1,,0.1,1\n".encode(),
        f"{HEAD}\ndetector,1,1.5,0.1,1\n".encode(),
        f"{HEAD}\ndetector\n".encode(),
        f"{HEAD}\ndetector,1,\xff".encode("latin-1"),
        f'{HEAD}\n"{"a" * 200_000}",1,2\n'.encode(),
        f"{HEAD}\ndetector,1,{'9' * 5000},0.1\n".encode(),
        b"stage\ndetector\n",
    ],
    ids=["word", "nothing", "fraction", "short row", "no UTF-8", "huge field", "huge number", "no steps"],
)
def test_a_damaged_log_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).write_bytes(content)
    with pytest.raises(InputError, match=rf"{LOG_NAME} is damaged \(.*\); begin anew with --overwrite"):
        TrainingLog(tmp_path).resume("detector", 10)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (f"{HEAD}\ndetector,1,5,0.1,1,extra,extra\n", 1),
        (f"{HEAD}\ndetector,1,5\ndetector,2,11,0.1\n", 1),
        ("\0,epoch\n1,2\n", 1),
        ("", 0),
    ],
    ids=["more columns", "fewer columns", "other columns", "empty"],
)
def test_a_log_with_other_columns_is_written_with_its_own(content: str, rows: int, tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).write_text(content)
    log = TrainingLog(tmp_path)
    log.resume("detector", 10)
    assert [set(row) == set(log.columns) for row in log.rows] == [True] * rows
    log.write()


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


def test_half_a_surrogate_pair_is_no_name_of_a_file(tmp_path: Path) -> None:
    entry = {"file": "\ud800", "dtype": "float32", "shape": [1]}
    case = {"name": "a", "npz": "a.npz", "inputs": {"x": entry}, "outputs": {}}
    (tmp_path / "index.json").write_text(json.dumps({"format_version": 1, "cases": [case]}))
    with pytest.raises(ArtifactError, match=r"cases\[0\].inputs.x.file is '\\ud800', which has half of a surrogate pair"):
        read_golden(tmp_path)


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
