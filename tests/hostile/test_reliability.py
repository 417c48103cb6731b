"""The page that counts all these cases says what pytest collects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.hostile import __main__ as reliability

FUZZ = {
    "inputs": 1234,
    "seconds": 9.0,
    "cpu_seconds": 5.0,
    "findings": 1,
    "targets": {
        "a": {"inputs": 1000, "seconds": 4.0, "cpu_seconds": 2.0, "inputs_per_second": 500, "findings": []},
        "b": {
            "inputs": 234,
            "seconds": 5.0,
            "cpu_seconds": 3.0,
            "inputs_per_second": 78,
            "findings": [{"kind": "KeyError", "place": "x.py:read", "message": "a|b", "file": "b-1"}],
        },
    },
}


def test_the_table_of_cases_is_what_pytest_collects() -> None:
    """If this fails: make reliability."""
    page = reliability.PAGE.read_text(encoding="utf-8")
    assert reliability.filled(page, {"cases": reliability.cases(reliability.count())}) == page


@pytest.mark.parametrize("name", ["fuzz", "soak", "kills"])
def test_the_figures_are_those_of_the_results(name: str) -> None:
    """If this fails: make reliability."""
    page = reliability.PAGE.read_text(encoding="utf-8")
    assert reliability.filled(page, {name: reliability.tables()[name]()}) == page


def test_every_group_says_what_it_is() -> None:
    files = [file for folder in ("hostile", "fuzz") for file in (reliability.ROOT / "tests" / folder).glob("test_*.py")]
    assert [file.name for file in files if not reliability.about(file)] == []


def test_findings_are_told() -> None:
    text = reliability.fuzz(FUZZ)
    assert "| `a` | 1,000 | 2 | 500 | 0 |" in text
    assert "| `b` | 234 | 3 | 78 | 1: KeyError x.py:read |" in text
    assert "| **all** | **1,234** | 5 |  | **1** |" in text


def test_kills_are_told() -> None:
    item = {"command": "train", "kills": 1000, "left_over": 0, "seconds": {"whole": 1}, "failures": ["a", "b"]}
    text = reliability.kills({"commands": [item]})
    assert text.splitlines() == [
        "| command | kills | left over | failures |",
        "| --- | --- | --- | --- |",
        "| train | 1,000 | 0 | 2 |",
    ]


def test_a_page_without_a_place_is_refused() -> None:
    assert reliability.filled("<!-- a -->\nold\n<!-- end of a -->", {"a": "new"}) == "<!-- a -->\n\nnew\n\n<!-- end of a -->"
    with pytest.raises(SystemExit, match="0 places for b; expected 1"):
        reliability.filled("<!-- a -->\n<!-- end of a -->", {"b": "new"})


def test_results_that_are_not_there_are_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "RESULTS", tmp_path)
    assert reliability.figures("fuzz.json", reliability.fuzz) == "Not measured yet."
    (tmp_path / "fuzz.json").write_text(json.dumps(FUZZ))
    assert re.search("1,234", reliability.figures("fuzz.json", reliability.fuzz))
