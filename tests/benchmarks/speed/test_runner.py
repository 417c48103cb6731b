"""The order of turns, the comparison before it, and what becomes of variants that are wrong, fail or die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detr_export.benchmarks.speed.agreement import largest_differences, tolerance, within
from detr_export.benchmarks.speed.gpu_state import GpuState
from detr_export.benchmarks.speed.process import WorkerDiedError
from detr_export.benchmarks.speed.runner import Runner, steps_of_a_workload
from detr_export.benchmarks.speed.settings import Pace, Workload
from detr_export.benchmarks.speed.targets import Target
from detr_export.benchmarks.speed.worker import Measure, Measured, Memory, Open, Opened, Prepare, Prepared, Throughput
from detr_export.runtimes.errors import BackendError
from tests.benchmarks.conftest import Watcher

TOLERANCE = {"logits": 1e-3, "pred_boxes": 1e-4}
TOLERANCES = {"fp32": TOLERANCE, "fp16": {"logits": 0.2, "pred_boxes": 0.1}}
WORKLOAD = Workload(64, 96, 1, ((np.zeros((8, 8, 3), np.uint8),),))
PACE = Pace(rounds=3, warmup_runs=1, runs=2, seconds=None, callers=2, throughput_seconds=0.0)
NAMES = ("torch:a", "torch:b", "torch:c")


class Fake:
    """A variant whose answers are made up; notes what it was asked, with its name, in a list that all share."""

    def __init__(self, name: str, journal: list[tuple[str, str]], **answers: Any) -> None:
        self.name, self.journal, self.answers = name, journal, answers
        self.memory: Memory | None = Memory(1, None)
        self.resting = self.closed = 0

    def request(self, command: Any) -> Any:
        kind = type(command).__name__
        self.journal.append((self.name, kind))
        answer = self.answers.get(kind)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return answer()
        if isinstance(command, Open):
            precision, ranges = self.answers.get("precision", "fp32"), self.answers.get("ranges", {})
            checkpoint = self.answers.get("checkpoint", "")
            return Opened(0.1, "1", precision, (64, 96), ranges, False, checkpoint=checkpoint)
        if isinstance(command, Prepare):
            outputs = {"logits": np.zeros((1, 2, 3), np.float32), "pred_boxes": np.zeros((1, 2, 4), np.float32)}
            return Prepared(5.0, {**outputs, **self.answers.get("outputs", {})})
        if isinstance(command, Measure):
            return Measured((1.0,), (2.0,), (0.5,), (3.5,))
        assert isinstance(command, Throughput)
        return 10.0 * command.callers

    def wait_until_idle(self) -> None:
        self.journal.append((self.name, "rest"))

    def close(self) -> None:
        self.closed += 1


def race(
    answers: Sequence[dict[str, Any]],
    pace: Pace = PACE,
    calibrate: Callable[[], float] = lambda: 1.0,
    backend: str = "torch",
    untimed: Sequence[str] = (),
) -> tuple[Runner, list[Fake], list[tuple[str, str]], list[str]]:
    """Opens and measures variants with these answers."""
    journal: list[tuple[str, str]] = []
    fakes = [Fake(name, journal, **given) for name, given in zip(NAMES, answers, strict=False)]
    waiting = iter(fakes)
    watcher = Watcher()
    runner = Runner(
        [Target(backend, fake.name, fake.name, timed=fake.name not in untimed) for fake in fakes],
        1,
        TOLERANCES.__getitem__,
        calibrate,
        lambda threads: next(waiting),
        progress=watcher,
    )
    with runner:
        runner.open()
        runner.measure([WORKLOAD], pace)
    assert all(done <= total for done, total, _ in watcher.steps)
    return runner, fakes, journal, [note for _, _, note in watcher.steps]


def test_rounds_are_interleaved_and_one_is_at_work_at_a_time() -> None:
    calibrations = iter(range(100))
    runner, fakes, journal, notes = race([{}, {}, {}], calibrate=lambda: float(next(calibrations)))
    assert [name for name, kind in journal if kind == "Measure"] == [*NAMES] * 3
    # Whoever was at work rests before anybody else is asked, and before the machine's speed is measured.
    asked = [entry for entry in journal if entry[1] != "rest"]
    assert journal == [step for entry in asked for step in (entry, (entry[0], "rest"))]
    turns = {raw.name: raw.turns for raw in runner.results}
    ordered = [turns[name][number] for number in range(3) for name in NAMES]
    assert [turn.calibration_before_ms for turn in ordered] == list(range(9))
    assert [turn.calibration_after_ms for turn in ordered] == list(range(1, 10))
    assert [turn.round for turn in turns[NAMES[1]]] == [0, 1, 2]
    assert runner.results[0].images_per_second == {"1": 10.0, "2": 20.0}
    assert runner.contestants[0].first_inference_ms == 5.0
    assert len(notes) == 3 + 3 * steps_of_a_workload(runner.contestants[0].target, PACE)
    assert [fake.closed for fake in fakes] == [1, 1, 1]


def test_all_are_compared_before_anything_is_timed() -> None:
    _, _, journal, _ = race([{}, {}, {}])
    kinds = [kind for _, kind in journal if kind != "rest"]
    assert kinds[:6] == ["Open"] * 3 + ["Prepare"] * 3
    assert set(kinds[6:15]) == {"Measure"}


def test_what_is_only_compared_is_not_timed() -> None:
    journal: list[tuple[str, str]] = []
    wrong = {"logits": np.ones((1, 2, 3), np.float32)}
    fakes = [Fake(NAMES[0], journal), Fake(NAMES[1], journal, outputs=wrong)]
    waiting, watcher = iter(fakes), Watcher()
    targets = [Target("torch", fake.name, fake.name) for fake in fakes]
    calibrate, tolerance = (lambda: 1.0), TOLERANCES.__getitem__
    with Runner(targets, 1, tolerance, calibrate, lambda threads: next(waiting), progress=watcher) as runner:
        runner.open()
        runner.measure([replace(WORKLOAD, timed=False)], PACE)
    assert {kind for _, kind in journal} == {"Open", "Prepare", "rest"}
    assert [(raw.correct, raw.turns) for raw in runner.results] == [(True, []), (False, [])]
    assert [(done, total) for done, total, _ in watcher.steps] == [(0, 2), (1, 2), (2, 4), (3, 4)]


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_a_wrong_variant_is_not_timed(wrong: float) -> None:
    outputs = {"logits": np.full((1, 2, 3), wrong, np.float32)}
    runner, _, journal, _ = race([{}, {"outputs": outputs}, {}])
    right, bad, other = runner.results
    assert (right.correct, bad.correct, other.correct) == (True, False, True)
    assert bad.largest_difference["logits"] == (0.5 if wrong == 0.5 else None)
    assert bad.turns == []
    assert (NAMES[1], "Measure") not in journal
    assert len(right.turns) == len(other.turns) == 3


@pytest.mark.parametrize("first", ["fp32", "fp16"])
def test_half_precision_has_a_tolerance_of_its_own(first: str) -> None:
    outputs = {"logits": np.full((1, 2, 3), 0.1, np.float32)}
    answers: list[dict[str, Any]] = [{"precision": "fp32"}, {"precision": "fp16", "outputs": outputs}, {}]
    if first == "fp16":
        answers = [answers[1], answers[0], {"outputs": {"logits": np.full((1, 2, 3), 0.5, np.float32)}}]
    runner, *_ = race(answers)
    assert [raw.correct for raw in runner.results] == [True, True, first == "fp32"]
    assert runner.results[1].tolerance == TOLERANCES["fp16"]
    assert runner.results[2].tolerance == TOLERANCES[first]


def test_one_that_cannot_be_opened_is_left_out() -> None:
    runner, fakes, _, _ = race([{"Open": BackendError("no such file")}, {}])
    assert runner.contestants[0].error == "no such file"
    assert [raw.name for raw in runner.results] == [NAMES[1]]
    assert runner.results[0].correct
    assert len(runner.results[0].turns) == 3
    assert fakes[0].closed


def test_one_more_can_be_added_and_comes_last() -> None:
    journal: list[tuple[str, str]] = []
    waiting = iter([Fake(name, journal) for name in NAMES])
    runner = Runner(
        [Target("torch", name, name) for name in NAMES[:2]],
        *(1, TOLERANCES.__getitem__, lambda: 1.0, lambda threads: next(waiting)),
    )
    with runner:
        runner.open()
        runner.add(Target("torch", NAMES[2], NAMES[2]))
        runner.measure([WORKLOAD], PACE)
    assert [name for name, kind in journal if kind == "Measure"] == [*NAMES] * 3


def test_one_that_does_not_take_the_size_is_left_out_at_it() -> None:
    runner, _, journal, _ = race([{"ranges": {"height": (1, 32)}}, {}])
    assert runner.results[0].error == "height is 64; this model takes 1 to 32"
    assert (NAMES[0], "Prepare") not in journal
    assert runner.contestants[0].error is None  # another size may do
    assert runner.results[1].correct


def test_one_that_fails_in_a_turn_keeps_what_it_has() -> None:
    turns = iter([Measured((1.0,), (2.0,), (0.5,), (3.5,))])

    def once() -> Measured:
        try:
            return next(turns)
        except StopIteration:
            raise BackendError("out of memory") from None

    runner, _, journal, _ = race([{}, {"Measure": once}])
    assert runner.results[1].error == "out of memory"
    assert len(runner.results[1].turns) == 1
    assert len(runner.results[0].turns) == 3
    assert (NAMES[1], "Throughput") not in journal


def test_one_that_dies_takes_no_more_part() -> None:
    runner, fakes, _, _ = race([{}, {"Prepare": WorkerDiedError("its process was ended by SIGSEGV")}])
    assert runner.contestants[1].error == "its process was ended by SIGSEGV"
    assert fakes[1].closed
    assert [item.target.name for item in runner.able] == [NAMES[0]]


def test_the_first_that_answers_is_the_reference() -> None:
    outputs = {"logits": np.full((1, 2, 3), 7, np.float32)}
    runner, _, _, _ = race([{"Prepare": BackendError("no")}, {"outputs": outputs}, {"outputs": outputs}])
    assert [raw.correct for raw in runner.results] == [None, True, True]


def test_one_that_is_not_timed_is_what_the_others_are_compared_with() -> None:
    moved = {"logits": np.full((1, 2, 3), 7, np.float32)}
    runner, _, journal, notes = race([{"outputs": moved}, {"outputs": moved}, {}], untimed=NAMES[:1])
    assert [raw.correct for raw in runner.results] == [True, True, False]
    assert [len(raw.turns) for raw in runner.results] == [0, 3, 0]
    assert [kind for name, kind in journal if name == NAMES[0] and kind != "rest"] == ["Open", "Prepare"]
    assert len(notes) == 3 + 3 + PACE.rounds + PACE.callers


@pytest.mark.parametrize(
    ("checkpoints", "right", "models"),
    [
        (("one", "two", "one"), [True, True, True], 2),  # the third is compared with the first
        (("one", "two", "two"), [True, True, False], 2),
        (("one", "one", "two"), [True, False, True], 2),
        (("one", "", "one"), [True, False, True], 1),  # nothing says what it was made from
        (("", "one", "one"), [True, False, True], 1),
    ],
)
def test_only_variants_of_one_checkpoint_are_compared(checkpoints: tuple[str, ...], right: list[bool], models: int) -> None:
    other = {"outputs": {"logits": np.ones((1, 5, 7), np.float32)}}
    runner, *_ = race([{"checkpoint": name, **extra} for name, extra in zip(checkpoints, ({}, other, {}), strict=True)])
    assert [raw.correct for raw in runner.results] == right
    assert len(runner.checkpoints) == models


def test_an_interruption_leaves_what_was_measured() -> None:
    counts = iter(range(100))

    def interrupted() -> float:
        if next(counts) == 5:
            raise KeyboardInterrupt
        return 1.0

    journal: list[tuple[str, str]] = []
    fakes = [Fake(name, journal) for name in NAMES[:2]]
    waiting = iter(fakes)
    runner = Runner(
        [Target("torch", fake.name, fake.name) for fake in fakes],
        1,
        TOLERANCES.__getitem__,
        interrupted,
        lambda threads: next(waiting),
    )

    def go() -> None:
        with runner:
            runner.open()
            runner.measure([WORKLOAD], PACE)

    with pytest.raises(KeyboardInterrupt):
        go()
    assert [len(raw.turns) for raw in runner.results] == [2, 2]
    assert all(fake.closed for fake in fakes)


def test_clocks_are_read_right_after_a_turn_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    state = GpuState(1980, 3201, 60, 500.0, ())
    monkeypatch.setattr("detr_export.benchmarks.speed.runner.read_gpu_state", lambda: state)
    monkeypatch.setattr("detr_export.benchmarks.speed.runner.require_runnable", lambda target: None)
    on_gpu, *_ = race([{}], backend="ort-cuda")
    assert [turn.gpu for turn in on_gpu.results[0].turns] == [state] * 3
    on_cpu, *_ = race([{}])
    assert [turn.gpu for turn in on_cpu.results[0].turns] == [None] * 3


def test_differences() -> None:
    one = {"logits": np.array([1.0, 2.0], np.float32), "pred_boxes": np.zeros((1, 4), np.float32), "more": np.zeros(1)}
    other = {"logits": np.array([1.0, 2.5], np.float32), "pred_boxes": np.zeros((2, 4), np.float32)}
    found = largest_differences(one, other)
    assert found == {"logits": 0.5, "pred_boxes": None}
    assert within({"logits": 1e-3}, TOLERANCE)
    assert not within({"logits": 1.1e-3}, TOLERANCE)
    assert not within({"logits": None}, TOLERANCE)


def test_tf32_is_as_coarse_as_fp16() -> None:
    assert tolerance("tf32") == tolerance("fp16")
    assert tolerance("tf32")["logits"] > tolerance("fp32")["logits"]
