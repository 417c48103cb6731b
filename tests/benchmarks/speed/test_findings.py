"""The noise of a run: which variant is the baseline once more, and what its turns say. Their times are made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from detr_export.benchmarks.accuracy.scores import Annotated
from detr_export.benchmarks.cost.machine_peak import Peaks
from detr_export.benchmarks.speed.findings import Findings
from detr_export.benchmarks.speed.runner import Runner
from detr_export.benchmarks.speed.statistics import Noise
from detr_export.benchmarks.speed.targets import Target, distinct
from detr_export.benchmarks.speed.worker import Measured
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.progress import SILENT
from tests.benchmarks.speed.test_runner import PACE, TOLERANCES, WORKLOAD, Fake

ROUNDS = 4
A, B = Target("torch", "a", "torch:a"), Target("torch", "b", "torch:b")


def findings_of(
    targets: Sequence[Target],
    times: Sequence[Sequence[float] | str],
    baseline: Target | None = None,
    wanted: bool = True,
    rounds: int = ROUNDS,
) -> Findings:
    """Opens and measures variants whose sessions take these milliseconds, a time a round, or that fail to open for a reason.

    The times of the second baseline, if one is added, come last.
    """
    journal: list[tuple[str, str]] = []

    def fake(given: Sequence[float] | str) -> Fake:
        if isinstance(given, str):
            return Fake("", journal, Open=BackendError(given))
        turns = iter(given)
        return Fake("", journal, Measure=lambda: Measured((1.0,), (next(turns),), (1.0,), (10.0,)))

    waiting = iter([fake(given) for given in times])
    runner = Runner(targets, 1, TOLERANCES.__getitem__, lambda: 1.0, lambda threads: next(waiting))
    with runner:
        runner.open()
        findings = Findings(runner, baseline, Peaks(1))
        findings.open_baseline_again(wanted, rounds)
        runner.measure([WORKLOAD], replace(PACE, rounds=rounds))
    assert next(waiting, None) is None  # no process fewer than there are times
    return findings


def test_the_baseline_is_measured_twice() -> None:
    times = ((10, 20, 10, 10), (9, 18, 9, 9), (10, 25, 10, 8))
    findings = findings_of([A, B], times)
    measured = {item.variant: item for item in findings.measurements()}
    assert list(measured) == ["torch:a", "torch:b", "torch:a (again)"]
    assert findings.baseline_again == "torch:a (again)"
    assert findings.why_no_noise(list(measured.values())) is None
    # 25 / 20 and 8 / 10 are equally far from 1, and 9 / 10 is closer.
    assert measured["torch:a"].noise is None
    for name, median in (("torch:b", 0.9), ("torch:a (again)", 1.0)):
        ratio = measured[name].ratio_to_baseline
        assert ratio is not None
        assert ratio.session == pytest.approx(median)
        assert ratio.noise == Noise(pytest.approx(0.25), 0.0)
        assert (ratio.session_differs, ratio.end_to_end_differs) == (False, False)


def test_a_ratio_beyond_the_noise_differs() -> None:
    findings = findings_of([A, B], ((10, 20, 10, 10), (5, 10, 5, 5), (10, 25, 10, 8)))
    ratio = findings.measurements()[1].ratio_to_baseline
    assert ratio is not None
    assert (ratio.session, ratio.session_differs) == (0.5, True)


@pytest.mark.parametrize(
    ("baseline", "again"), [(0, "torch:a#2"), (2, "torch:a"), (1, "torch:b (again)"), (None, "torch:a#2")]
)
def test_a_pair_that_was_given_is_the_pair_if_it_is_the_baseline(baseline: int | None, again: str) -> None:
    targets = distinct([A, B, A])
    times = [[10.0] * ROUNDS] * (4 if again.endswith("(again)") else 3)
    findings = findings_of(targets, times, None if baseline is None else targets[baseline])
    assert findings.baseline_again == again
    names = [item.variant for item in findings.measurements()]
    assert names == [item.name for item in targets] + ([again] if again.endswith("(again)") else [])
    assert findings.why_no_noise(findings.measurements()) is None


def test_the_same_model_in_another_backend_is_no_pair() -> None:
    findings = findings_of([A, Target("torch-cuda", "a", "torch-cuda:a")], [[1.0] * ROUNDS] * 3)
    assert findings.baseline_again == "torch:a (again)"


def test_a_single_target() -> None:
    findings = findings_of([A], [[10.0] * ROUNDS, [11.0] * ROUNDS])
    (_, again) = findings.measurements()
    assert again.noise == Noise(pytest.approx(0.1), 0.0)
    assert again.ratio_to_baseline is not None
    assert again.ratio_to_baseline.session_differs is False


def test_the_first_that_opens_is_doubled() -> None:
    findings = findings_of([A, B], ["no such file", [10.0] * ROUNDS, [10.0] * ROUNDS])
    assert (findings.baseline, findings.baseline_again) == ("torch:b", "torch:b (again)")


@pytest.mark.parametrize(
    ("times", "baseline", "wanted", "rounds", "reason"),
    [
        ([[1.0] * 4] * 2, None, False, 4, "it was not asked for"),
        ([[1.0] * 3] * 2, None, True, 3, "it takes at least 4 rounds"),
        (["no such file", [1.0] * 4], A, True, 4, "the baseline could not be opened"),
        (["no such file", "nor this"], None, True, 4, "the baseline could not be opened"),
    ],
)
def test_no_third_process_without_noise(
    times: list[list[float] | str], baseline: Target | None, wanted: bool, rounds: int, reason: str
) -> None:
    findings = findings_of([A, B], times, baseline, wanted, rounds)
    assert findings.baseline_again is None
    assert [item.name for item in findings.variants()] == ["torch:a", "torch:b"]
    assert findings.why_no_noise(findings.measurements()) == reason
    assert all(item.noise is None for item in findings.measurements())


def test_the_second_baseline_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_export.benchmarks.speed.findings.score", lambda target, *_: target.name)
    findings = findings_of([A, B], [[1.0] * ROUNDS] * 3)
    findings.add_scores(Annotated(Path(), Path(), None), None, 1, SILENT)
    assert findings.accuracy == ["torch:a", "torch:b"]


def test_a_second_baseline_that_cannot_be_opened() -> None:
    findings = findings_of([A, B], [[1.0] * ROUNDS, [1.0] * ROUNDS, "out of memory"])
    assert [item.error for item in findings.variants()] == [None, None, "out of memory"]
    found = findings.measurements()
    assert [item.variant for item in found] == ["torch:a", "torch:b"]
    assert found[1].ratio_to_baseline is not None
    assert findings.why_no_noise(found) == "fewer than 4 rounds of the baseline's two variants count"
