"""`documents` and `limits`: bounded, parsed and typed, with errors that name file, field, found and expected."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import pytest

from detr_export.runtimes import limits
from detr_export.runtimes.documents import Count, Integer, Number, Probability, parse, read_document, shown, typed
from detr_export.runtimes.errors import ArtifactError, CheckpointError, InputError
from detr_export.runtimes.limits import Limits, raise_limits, raise_limits_from, require_at_most


@dataclass
class Inner:
    """An object in a document."""

    count: Count
    share: Probability = 0.0


@dataclass
class Document:
    """A document."""

    count: Count
    by_name: dict[str, Inner] = field(default_factory=dict)
    pairs: list[tuple[Integer, Integer]] = field(default_factory=list)
    name: Optional[str] = None
    number: Number = 0.0


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = limits.current()
    monkeypatch.setenv(limits.VARIABLE, "")  # put back after the test, whatever it becomes
    yield
    limits._current = before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "it lacks count"),
        (5, "it is 5; expected an object"),
        ([], "it is a list of 0; expected an object"),
        ({"count": "3"}, "count is '3'; expected an integer"),
        ({"count": True}, "count is true; expected an integer"),
        ({"count": 1.5}, "count is 1.5; expected an integer"),
        ({"count": 1.0}, "count is 1.0; expected an integer"),
        ({"count": None}, "count is null; expected an integer"),
        ({"count": 0}, "count is 0; expected an integer >= 1"),
        ({"count": -(10**30)}, "count is an integer of 100 bits; expected an integer >= 1"),
        pytest.param(
            {"count": 10**5000},
            "count is an integer of 16610 bits; expected an integer <= 9223372036854775807",
            id="10^5000",
        ),
        ({"count": 1, "name": 3}, "name is 3; expected text or null"),
        ({"count": 1, "number": float("inf")}, "number is inf; expected a number <= 1000000000000000.0"),
        ({"count": 1, "number": float("nan")}, "number is nan; expected a number >= -1000000000000000.0"),
        ({"count": 1, "number": 10**400}, "number is an integer of 1329 bits; number out of range"),
        ({"count": 1, "pairs": [[1, 2], [3]]}, "pairs[1] is a list of 1; expected a list of length 2"),
        ({"count": 1, "pairs": [[1, 2], [3, []]]}, "pairs[1][1] is a list of 0; expected an integer"),
        ({"count": 1, "by_name": []}, "by_name is a list of 0; expected an object"),
        (
            {"count": 1, "by_name": {"a": {"count": 1}, "b": {"count": 0}}},
            "by_name['b'].count is 0; expected an integer >= 1",
        ),
        ({"count": 1, "by_name": {"a": {"count": 1}, "b": {}}}, "by_name['b'] lacks count"),
        ({"count": 1, "by_name": {"x": {"count": 1, "share": 2}}}, "by_name['x'].share is 2; expected a number <= 1.0"),
        ({"count": 1, "name": ["x" * 1000]}, "name is a list of 1; expected text or null"),
    ],
)
def test_an_error_names_file_field_found_and_expected(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        typed(value, Document, "config.json", CheckpointError)
    assert str(caught.value) == f"config.json: {message}"


def test_a_document_stays_as_it_was_when_it_is_refused() -> None:
    value = {"count": 1, "by_name": {"a": {"count": 1}, "b": {"count": 0}}}
    with pytest.raises(CheckpointError):
        typed(value, Document, "config.json", CheckpointError)
    assert value == {"count": 1, "by_name": {"a": {"count": 1}, "b": {"count": 0}}}


def test_a_document_becomes_its_type() -> None:
    found = typed({"count": 3, "by_name": {"a": {"count": 1, "share": 1}}, "other": 1}, Document, "x", CheckpointError)
    assert found == Document(3, {"a": Inner(1, 1.0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": 1e400}', "is not JSON"),
        (b"\xff", "is not JSON"),
        ('"\ud800"', "is not JSON"),
        (b"1" * 5000, "is not JSON: Integer value out of range"),
        (b'{"a": [' + b"9" * 30 + b"]}", "has an integer of 100 bits; expected at most 64"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested too deeply; expected at most 64 levels"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else repr(value[:12]),
)
def test_what_is_no_bounded_json_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match="^x.json .*" + message):
        parse(text, "x.json", ArtifactError)


def test_a_document_may_be_as_deep_and_as_long_as_the_limits_say() -> None:
    assert parse(b"[" * 64 + b"]" * 64, "x.json", ArtifactError)
    raise_limits(document_bytes=10)
    with pytest.raises(
        ArtifactError, match=r"^the size of x.json in bytes is 12; expected at most 10; .*--limit document_bytes=N$"
    ):
        parse(b" " * 11 + b"1", "x.json", ArtifactError)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": [1, "\u00e9"]}', encoding="utf-8")
    assert read_document(file, ArtifactError) == {"a": [1, "\u00e9"]}
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "y.json", ArtifactError)
    raise_limits(document_bytes=5)
    with pytest.raises(ArtifactError, match="expected at most 5"):
        read_document(file, ArtifactError)


@pytest.mark.skipif(os.name != "posix", reason="pipes with names and devices")
@pytest.mark.timeout(30)
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ArtifactError, match="is not a regular file"):
            read_document(file, ArtifactError)
    for name in (str(tmp_path), "a\0b", "x" * 5000):
        with pytest.raises(ArtifactError, match="cannot read"):
            read_document(name, ArtifactError)


_HUGE = [pytest.param(sign * 10**5000, id=f"{sign} * 10^5000") for sign in (1, -1)]


@pytest.mark.parametrize("value", [*_HUGE, None, True, 1, 1.5, "a\nb", "x" * 10**6, [[]], {}, (1,), b"x", float("nan")])
def test_every_value_is_shown_on_one_short_line(value: Any) -> None:
    assert len(shown(value)) <= 60
    assert "\n" not in shown(value)


def test_every_limit_can_be_raised_and_reaches_processes_started_later() -> None:
    for item in fields(Limits):
        raise_limits_from(f"{item.name}={item.default + 1}")
        require_at_most(item.name, item.default + 1, "it", InputError)
        with pytest.raises(
            InputError, match=rf"^it is {item.default + 2}; expected at most {item.default + 1}; .*{item.name}=N$"
        ):
            require_at_most(item.name, item.default + 2, "it", InputError)
    code = "from detr_export.runtimes import limits; print(limits.current())"
    shown_there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown_there.strip() == repr(limits.current())


@pytest.mark.parametrize(
    "text",
    [
        "queries",
        "queries=",
        "=1",
        "queries=-1",
        "queries=0",
        "queries=1.5",
        "queries=\u0663",
        "q=1",
        "queries=" + "9" * 5000,
    ],
)
def test_a_limit_that_does_not_exist_or_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="limit"):
        raise_limits_from(text)
    assert limits.current() == Limits()


def test_docs_list_every_limit_with_its_number() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
    for item in fields(Limits):
        assert f"| `{item.name}` | {item.default} |" in page, item.name
