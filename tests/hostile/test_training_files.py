"""What a run left, and golden data, are typed when they are read."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detr_export.data.sources import DataSource
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.runtimes.errors import ArtifactError, CheckpointError, InputError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.training.options import TrainingOptions
from detr_export.training.request import Request
from detr_export.training.starting_point import _processor_beside, saved_point
from detr_export.training.state import STATE_NAME, Best, Identity, State, read_state, write_state
from detr_export.training.training_log import COLUMNS, Table
from detr_export.verification.array_file import read_arrays
from detr_export.verification.golden import INDEX, GoldenCase
from detr_export.verification.golden.reading import read_golden
from detr_export.verification.golden.writing import write_golden
from tests import models
from tests.hostile import values


def document(folder: Path) -> dict[str, Any]:
    """What a run leaves in its state, as plain values and tensors."""
    config = models.config()
    text = json.dumps(config.to_dict(), sort_keys=True)
    identity = Identity(TrainingOptions().to_dict(), text, DetrImageProcessor().to_dict(), False, 3, 1)
    weights = DetrForObjectDetection(config).state_dict()
    arguments = {"data": DataSource(folder).to_dict(), "skip_bad": False}
    state = State(identity, 0, 2, weights, best=Best(0.5, 1), arguments=arguments)
    write_state(folder / STATE_NAME, state)
    return dict(torch.load(folder / STATE_NAME, weights_only=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Not to be changed."""
    return document(tmp_path_factory.mktemp("state"))


def changed(plain: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {**plain, first: changed(plain[first], rest, value) if rest else value}


def test_a_sound_state(plain: dict[str, Any], tmp_path: Path) -> None:
    torch.save(plain, tmp_path / STATE_NAME)
    state = read_state(tmp_path / STATE_NAME)
    assert (state.step, state.best, state.options) == (2, Best(0.5, 1), TrainingOptions())
    assert saved_point(state).model.config == models.config()
    assert Request.resumed(tmp_path, {}, None, False).options == TrainingOptions()


STATES: list[tuple[str, Any, str]] = [
    ("stage", -1, "stage is -1; expected an integer >= 0"),
    ("stage", "0", "stage is '0'; expected an integer"),
    ("stage", 1, "stage is 1; expected at most 0"),
    ("stage", 10**30, "stage is an integer of 100 bits; expected an integer"),
    ("step", None, "step is null; expected an integer"),
    ("step", 1.5, "step is 1.5; expected an integer"),
    ("stopped", 1, "stopped is 1; expected true or false"),
    ("best", 3, "best is 3; expected an object or null"),
    ("best.score", float("nan"), "best.score is nan; expected a number"),
    ("best.score", "x", "best.score is 'x'; expected a number"),
    ("best.epoch", -1, "best.epoch is -1; expected an integer >= 0"),
    ("best.since", [], "best.since is a list of 0; expected an integer"),
    ("model", None, "model is null; expected an object"),
    ("model", {"a": 3}, "model has a, which is no tensor"),
    ("model", {"a": torch.zeros(1).expand(10**9)}, r"model: a is expanded: its shape is \[1000000000\]"),
    ("average", {"a": torch.zeros(1).expand(10**9)}, r"average: a is expanded: its shape is \[1000000000\]"),
    ("average", [], "average is a list of 0; expected an object or null"),
    ("optimizer", 5, "optimizer is 5; expected an object or null"),
    ("precision", None, "precision is null; expected an object"),
    ("arguments", "x", "arguments is 'x'; expected an object"),
    ("identity", None, "identity is null; expected an object"),
    ("identity", {}, "identity lacks"),
    ("identity.options", [], "identity.options is a list of 0; expected an object"),
    ("identity.options", {"a": 1}, "options has 'a'; expected some of task, epochs"),
    ("identity.options.epochs", "3", "options: epochs is '3'; expected an integer"),
    ("identity.options.epochs", 0, "there are no epochs to train"),
    ("identity.options.epochs", 10**12, "epochs is 1000000000000; expected at most 1000000000"),
    ("identity.options.batch_size", 0, "batch_size is 0; expected at least 1"),
    ("identity.options.seed", 2**63 - 1, "seed is an integer of 63 bits; expected at most"),
    ("identity.options.learning_rate", float("nan"), "learning_rate is nan; expected a number from 0"),
    ("identity.options.learning_rate", "x", "options: learning_rate is 'x'; expected a number"),
    ("identity.options.scale", 3, "options: scale is 3; expected a list"),
    ("identity.options.scale", [1], "options: scale is a list of 1; expected a list of length 2"),
    ("identity.options.jointly", "no", "options: jointly is 'no'; expected true or false"),
    ("identity.config", 3, "identity.config is 3; expected text"),
    ("identity.config", "{", "identity.config is not JSON"),
    ("identity.config", "[]", "identity.config: it is a list of 0; expected an object"),
    ("identity.config", "[" * 100_000, "identity.config is nested too deeply"),
    ("identity.config", "{}", "model_type is null; expected 'detr'"),
    ("identity.config", '{"model_type": "detr", "d_model": 0}', "d_model is 0; expected an integer >= 1"),
    ("identity.processor", [], "identity.processor is a list of 0; expected an object"),
    ("identity.processor", {"size": "x"}, r"size\['shortest_edge'\] is 'x'; expected a positive integer"),
    ("identity.whole_backbone", 1, "identity.whole_backbone is 1; expected true or false"),
    ("identity.images", -1, "identity.images is -1; expected an integer >= 0"),
    ("identity.processes", 0, "identity.processes is 0; expected an integer >= 1"),
    ("identity.source", {"name": 3}, r"identity.source\['name'\] is 3; expected text"),
]


@pytest.mark.parametrize(("path", "value", "message"), STATES, ids=range(len(STATES)))
def test_a_field_of_a_state(path: str, value: Any, message: str, plain: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / STATE_NAME
    torch.save(changed(plain, path, value), file)
    with pytest.raises(CheckpointError, match=f"^{file} is damaged and cannot be resumed; .*: {message}") as caught:
        read_state(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "arguments.data is 3|arguments.data: it is 3; expected an object"),
        ({"root": 3}, r"arguments.data: \['root'\] is 3; expected text"),
        ({"a": "b"}, "arguments.data has 'a'; expected root"),
    ],
)
def test_where_the_data_was(value: Any, message: str, plain: dict[str, Any], tmp_path: Path) -> None:
    torch.save(changed(plain, "arguments.data", value), tmp_path / STATE_NAME)
    with pytest.raises(CheckpointError, match=message):
        Request.resumed(tmp_path, {}, None, False)
    torch.save(changed(plain, "arguments", {}), tmp_path / STATE_NAME)
    with pytest.raises(InputError, match="does not say where the data is"):
        Request.resumed(tmp_path, {}, None, False)


@pytest.mark.parametrize("content", [None, 3, [], {}, {"a": torch.zeros(1)}, "x", torch.zeros(3)], ids=range(7))
def test_a_state_that_is_none(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / STATE_NAME)
    with pytest.raises(CheckpointError, match=f"{STATE_NAME} is damaged and cannot be resumed; .*: it (is|lacks)"):
        read_state(tmp_path / STATE_NAME)


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_state_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATE_NAME)
    with pytest.raises(CheckpointError, match=rf"{STATE_NAME} is not a regular file"):
        read_state(tmp_path / STATE_NAME)
    for content in (b"", b"PK\x03\x04", b"nothing"):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"/b is (damaged and cannot be resumed|truncated or not)"):
            read_state(tmp_path / "b")
    os.mkfifo(tmp_path / "preprocessor_config.json")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is not a regular file"):
        _processor_beside(tmp_path / "config.json")


@pytest.mark.parametrize("value", values.VALUES.values(), ids=values.VALUES.keys())
def test_any_option_is_read_or_refused(value: Any) -> None:
    for field, options in values.mutated(TrainingOptions().to_dict(), value):
        values.read_or_refused(TrainingOptions.from_dict, options, field)


# ---- logs ---------------------------------------------------------------------------------------------------------------

HEAD = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + "\na,1,x" + "," * (len(COLUMNS) - 3) + "\n", "row 1: step is 'x'; expected an integer"),
        (HEAD + "\na,1,-1" + "," * (len(COLUMNS) - 3) + "\n", "row 1: step is '-1'; expected an integer"),
        (HEAD + "\na,1," + "9" * 5000 + "," * (len(COLUMNS) - 3) + "\n", "row 1: step is '999.*; expected an integer"),
        (HEAD + "\na,1,1" + "," * (len(COLUMNS) - 3) + "\na,1\n", "row 2 has other columns than stage"),
        (HEAD + "\na" + "," * (len(COLUMNS) + 3) + "\n", "row 1 has other columns than stage"),
        ("a,b\n1,2\n", "row 1 has other columns than stage"),
        ("stage\n1\n", "row 1 has other columns than stage"),
        (b"\xff\xfe", "is not a table"),
        (HEAD + '\n"' + "x" * 200_000 + '"\n', "is not a table"),
    ],
    ids=range(9),
)
def test_a_log(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=f"^{file}:? {message}.*; remove (it|the file) to go on") as caught:
        Table(file, COLUMNS).resume("a", 3)
    assert "\n" not in str(caught.value)


def test_a_log_that_is_none_or_large(tmp_path: Path) -> None:
    Table(tmp_path / "gone.csv", COLUMNS).resume("a", 3)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.csv is not a regular file"):
        Table(tmp_path / "folder.csv", COLUMNS).resume("a", 3)
    with (tmp_path / "large.csv").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"large\.csv in bytes is 1099511627776; expected at most"):
        Table(tmp_path / "large.csv", COLUMNS).resume("a", 3)


# ---- golden data --------------------------------------------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    case = GoldenCase("one", {"pixel_values": np.ones((1, 2), np.float32)}, {"logits": np.ones((1, 3), np.float32)})
    write_golden(tmp_path / "golden", "a.onnx", {"name": "a", "sha256": "0" * 64}, "tensors", [case], {"logits": 0.1})
    read_golden(tmp_path / "golden")
    return tmp_path / "golden"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "[" * 100_000, "it is nested too deeply"),
        (lambda text: '{"a":' * 100_000, "it is nested too deeply"),
        (
            lambda text: text.replace('"cases"', '"x": ' + "9" * 5000 + ', "cases"'),
            "it is not JSON: Integer value out of range",
        ),
        (lambda text: text.replace('"cases"', '"x": ' + "9" * 30 + ', "cases"'), "it has an integer of 100 bits"),
        (lambda text: text.replace('"cases"', '"x": NaN, "cases"'), "it is not JSON"),
        (lambda text: text.replace('"cases"', '"cases": [], "cases"'), "the name 'cases' is in one object twice"),
        (
            lambda text: text.replace('"cases"', '"a\\nb": 1, "a\\nb": 1, "cases"'),
            r"the name 'a\\nb' is in one object",
        ),
        (lambda text: text.replace("0" * 64, "0" * 10**6), "source.sha256 is '000.*; expected 64 hexadecimal digits"),
        (lambda text: text.replace('"float32"', '"' + "f" * 10**6 + '"'), "dtype is 'fff.*; expected one of"),
        (lambda text: text.replace('"tensors"', '"' + "f" * 10**6 + '"'), "kind is 'fff.*; expected one of"),
        (lambda text: text.replace('"one"', '"' + "/" * 10**6 + '"'), "a case is named '///.*; expected letters"),
    ],
    ids=range(11),
)
def test_an_index(change: Callable[[str], str], message: str, golden: Path) -> None:
    text = change((golden / INDEX).read_text())
    (golden / INDEX).write_text(text)
    with pytest.raises(ArtifactError, match=f"{INDEX}: .*{message}") as caught:
        read_golden(golden)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_index_with_many_names(golden: Path) -> None:
    """It is looked through once, not once for each name."""
    many = {f"name{index}": 1 for index in range(200_000)}
    (golden / INDEX).write_text(json.dumps({**json.loads((golden / INDEX).read_text()), "x": many}))
    read_golden(golden)


@pytest.mark.parametrize("value", values.VALUES.values(), ids=values.VALUES.keys())
def test_any_value_in_an_index_is_read_or_refused(value: Any, golden: Path) -> None:
    for field, changed_index in values.mutated(json.loads((golden / INDEX).read_text()), value):
        (golden / INDEX).write_bytes(values.as_json(changed_index))
        values.read_or_refused(read_golden, golden, field)


def test_arrays_that_are_larger_than_their_file(golden: Path, tmp_path: Path) -> None:
    (packed,) = golden.glob("*.npz")
    expected = np.load(packed)
    arrays = {name: expected[name] for name in expected.files}
    expected.close()
    np.savez_compressed(packed, **{**arrays, "logits": np.zeros((1, 10**7), np.float32)})
    with pytest.raises(ArtifactError, match=r"the arrays of .*npz have 40000[0-9]+ bytes; expected at most 82[0-9]+"):
        read_golden(golden)
    file = tmp_path / "a.npz"
    header = bytearray(128)
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }"
    header[:10] = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header[10:] = text.ljust(117) + b"\n"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a.npy", bytes(header))
    with pytest.raises(InputError, match="is damaged or holds objects"):
        read_arrays(file)
