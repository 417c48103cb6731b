"""The table of `docs/compatibility.md` is complete and up to date."""

from __future__ import annotations

from tests import compatibility


def test_no_row_says_missing() -> None:
    table = compatibility.rows()
    assert len(table) > 200
    assert [row for row in table if row[3] == "missing"] == []


def test_the_document_is_up_to_date() -> None:
    assert compatibility.FILE.read_text() == compatibility.text(), "run: python -m tests.compatibility"


def test_every_reason_is_used() -> None:
    used = {(name, argument) for name, _, argument, _ in compatibility.rows()}
    arguments = {argument for _, argument in used}
    for name, argument in compatibility.REASONS:
        assert (name, argument) in used or (name == "*" and argument in arguments), (name, argument)
