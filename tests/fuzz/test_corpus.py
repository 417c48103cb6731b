"""What the fuzzer starts from and what it found before, and a short run of it: the same inputs on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from detr_export.runtimes import limits
from detr_export.runtimes.errors import InputError
from tests.fuzz.__main__ import CORPUS, FINDINGS
from tests.fuzz.board import Board
from tests.fuzz.target import LIMITS, Finding, Function, OutOfRangeError, Target, require_finite, try_input
from tests.fuzz.targets import TARGETS
from tests.fuzz.trying import Recorder, bounded_memory, file_name, plain
from tests.fuzz.worker import MEMORY

SEEDS = [(name, file.name) for name in TARGETS for file in sorted((CORPUS / name).iterdir())]
FOUND = [file.name for file in sorted(FINDINGS.glob("*"))]


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the fuzzer has."""
    monkeypatch.setenv(limits.VARIABLE, "")
    monkeypatch.setattr(limits, "_current", limits.current())
    limits.raise_limits(**LIMITS)


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[[str], Function]:
    """A target, ready for inputs."""
    return lambda name: TARGETS[name].prepare(tmp_path)


@pytest.mark.parametrize(("name", "file"), SEEDS, ids=["-".join(seed) for seed in SEEDS])
def test_a_seed_is_read(name: str, file: str, prepared: Callable[[str], Function]) -> None:
    """Without any error: what follows from a seed that is refused at once shows nothing."""
    prepared(name)((CORPUS / name / file).read_bytes())


@pytest.mark.parametrize("file", FOUND)
def test_a_finding_stays_mended(file: str, prepared: Callable[[str], Function]) -> None:
    assert try_input(prepared(file.rpartition("-")[0]), (FINDINGS / file).read_bytes()) is None


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_short_run_finds_nothing(target: Target, tmp_path: Path) -> None:
    function, inputs, found = target.prepare(tmp_path), [], []

    def try_one(data: bytes) -> None:
        inputs.append(data)
        finding = try_input(function, data)
        if finding is not None:
            found.append((finding, data))

    seeds = [file.read_bytes() for file in sorted((CORPUS / target.name).iterdir())]
    for data in seeds[:3]:  # what is imported late is in memory before the bound is set
        try_input(function, data)
    with bounded_memory(2 * MEMORY):
        plain(target, try_one, seeds, target.short, seed=1)
    assert len(inputs) == target.short
    assert [item for item in found if item[0].kind != "slow"] == []  # how slow a test is depends on the machine


def test_every_target_has_seeds_and_all_are_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(file.stat().st_size for file in CORPUS.rglob("*.*")) < 200_000


# ---- the fuzzer itself ----------------------------------------------------------------------------------------------


def _raises(error: BaseException) -> Function:
    def read(data: bytes) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("a"), "KeyError"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError"),
        (ValueError("a plain one"), "ValueError"),
        (OutOfRangeError("NaN"), "OutOfRangeError"),
        (InputError(" "), "empty message"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_error_of_the_project_is_a_finding(error: BaseException, kind: str) -> None:
    found = try_input(_raises(error), b"x")
    assert found is not None
    assert found.kind == kind


def test_an_error_of_the_project_is_none() -> None:
    assert try_input(_raises(InputError("the field a is 3; expected 1")), b"x") is None


def test_a_warning_is_a_finding() -> None:
    found = try_input(lambda data: np.float32(3e38) * np.float32(10) and None, b"")
    assert found is not None
    assert (found.kind, found.message) == ("RuntimeWarning", "overflow encountered in scalar multiply")


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], {"a": np.array([np.nan])}, ({"b": -np.inf},)])
def test_values_that_are_not_finite_are_out_of_range(value: object) -> None:
    require_finite([1.0, np.ones(2), {"a": 2, "b": "nan"}], "it")
    with pytest.raises(OutOfRangeError):
        require_finite(value, "it")


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_mutations_follow_from_the_seed(target: Target) -> None:
    data = sorted((CORPUS / target.name).iterdir())[0].read_bytes()
    made = [[target.mutate(data, random.Random(seed)) for seed in range(20)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 10


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """An empty one."""
    board = Board(tmp_path / "board")
    yield board
    board.close()


def test_a_finding_is_kept_once_and_made_smaller(board: Board, tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        if b"7" in data:
            raise KeyError("seven")

    record = Recorder(read, board, tmp_path)
    for data in (b"123456", b"1234567890", b"7777", b""):
        record(data)
    assert (board.count >= 4, board.current) == (True, b"")
    (kept,) = tmp_path.glob("*.json")
    assert kept.with_suffix("").read_bytes() == b"7"


def test_a_count_is_seen_by_another_process(board: Board, tmp_path: Path) -> None:
    other = Board(tmp_path / "board")
    board.begin(b"one")
    board.begin(b"two")
    assert (other.count, other.current) == (2, b"two")
    other.close()


def test_findings_of_one_kind_and_place_are_one() -> None:
    assert file_name(Finding("KeyError", "a.py:read", "1")) == file_name(Finding("KeyError", "a.py:read", "2"))
    assert file_name(Finding("KeyError", "a.py:read", "1")) != file_name(Finding("KeyError", "b.py:read", "1"))
