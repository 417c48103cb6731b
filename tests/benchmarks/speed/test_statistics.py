"""Percentiles, the order of turns, which of them count, and ratios: on samples whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from detr_export.benchmarks.speed.statistics import (
    LEAST_ROUNDS_FOR_NOISE,
    PARTS,
    Noise,
    Turn,
    is_beyond,
    is_disturbed,
    kept,
    mark_disturbed,
    noise_of,
    percentiles,
    pooled,
    ratio_to,
    schedule,
    timing,
)


def turn(
    number: int,
    *session_ms: float,
    calibration: tuple[float, float] = (1.0, 1.0),
    disturbed: bool = False,
    end_to_end: float = 1.0,
) -> Turn:
    return Turn(number, *calibration, (1.0,), session_ms, (1.0,), (end_to_end,), disturbed)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).gamma(2.0, 10.0, count)
    found = timing(samples)
    assert found is not None
    assert found.samples == tuple(samples)
    assert found.min == samples.min()
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(samples, percent), rel=1e-12)


def test_percentiles_of_nothing() -> None:
    assert timing(()) is None
    assert pooled((), "session_ms") is None


def test_variants_take_turns() -> None:
    assert list(schedule(["a", "b", "c"], 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c")]
    assert list(schedule([], 3)) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(10, 10, False), (11, 9, False), (11.01, 10, True), (10, 8.99, True), (10, 30, True)],
)
def test_disturbed_is_more_than_a_tenth_off(before: float, after: float, expected: bool) -> None:
    assert is_disturbed(before, after, 10) is expected


def test_turns_are_marked_against_the_median_of_the_whole_run() -> None:
    calm = [turn(0, 5.0, calibration=(10, 10)), turn(1, 5.0, calibration=(10, 10.5))]
    mixed = [turn(0, 5.0, calibration=(10.5, 20)), turn(1, 5.0, calibration=(10, 10))]
    marked = mark_disturbed([calm, mixed, []])
    assert [[item.disturbed for item in group] for group in marked] == [[False, False], [True, False], []]
    assert [[item.session_ms for item in group] for group in marked[:2]] == [[(5.0,)] * 2] * 2


def test_disturbed_turns_are_left_out() -> None:
    turns = [turn(0, 10.0, 12.0), turn(1, 99.0, disturbed=True), turn(2, 11.0)]
    assert [item.round for item in kept(turns)] == [0, 2]
    found = pooled(turns, "session_ms")
    assert found is not None
    assert found.samples == (10.0, 12.0, 11.0)


@pytest.mark.parametrize(("disturbed", "rounds"), [((True, False), [1]), ((True, True, False), [0, 1, 2]), ((True,), [0])])
def test_unless_more_than_half_would_be(disturbed: tuple[bool, ...], rounds: list[int]) -> None:
    turns = [turn(number, 1.0, disturbed=marked) for number, marked in enumerate(disturbed)]
    assert [item.round for item in kept(turns)] == rounds


def test_the_ratio_is_taken_inside_each_round() -> None:
    """The machine becomes four times as slow, and the ratio stays: that of the pooled medians would not."""
    baseline = [turn(0, 10.0), turn(1, 20.0), turn(2, 40.0)]
    variant = [turn(0, 5.0, end_to_end=3.0), turn(1, 10.0, end_to_end=2.0), turn(2, 20.0, end_to_end=1.0)]
    found = ratio_to(variant, baseline)
    assert found is not None
    assert (found.session, found.session_low, found.session_high, found.end_to_end) == (0.5, 0.5, 0.5, 2.0)


def test_the_ratio_is_of_medians_and_its_spread_over_rounds() -> None:
    baseline = [turn(number, 10.0) for number in range(3)]
    variant = [turn(0, 20.0, 20.0, 900.0), turn(1, 10.0), turn(2, 40.0, 40.0, 1.0)]
    found = ratio_to(variant, baseline)
    assert found is not None
    assert (found.session, found.session_low, found.session_high) == (2.0, 1.0, 4.0)


def test_the_spread_of_many_rounds_is_the_middle_of_them() -> None:
    values = np.random.default_rng(0).uniform(0.5, 2.0, 30)
    found = ratio_to([turn(i, float(v)) for i, v in enumerate(values)], [turn(i, 1.0) for i in range(30)])
    assert found is not None
    assert found.session == pytest.approx(np.median(values))
    assert found.session_low == pytest.approx(np.percentile(values, 10))
    assert found.session_high == pytest.approx(np.percentile(values, 90))


def test_a_round_counts_when_neither_turn_was_disturbed() -> None:
    baseline = [turn(0, 1.0, disturbed=True), turn(1, 1.0), turn(2, 1.0), turn(3, 1.0)]
    variant = [turn(0, 9.0), turn(1, 2.0), turn(2, 9.0, disturbed=True), turn(3, 2.0)]
    found = ratio_to(variant, baseline)
    assert found is not None
    assert (found.session, found.session_high) == (2.0, 2.0)


def test_all_rounds_count_when_less_than_half_would() -> None:
    baseline = [turn(0, 1.0, disturbed=True), turn(1, 1.0), turn(2, 1.0)]
    variant = [turn(0, 9.0), turn(1, 2.0, disturbed=True), turn(2, 3.0)]
    found = ratio_to(variant, baseline)
    assert found is not None
    assert (found.session, found.session_low, found.session_high) == (3.0, 2.0, 9.0)


def test_rounds_that_one_of_them_missed_do_not_count() -> None:
    found = ratio_to([turn(0, 4.0), turn(1, 6.0)], [turn(0, 2.0)])
    assert found is not None
    assert found.session == 2.0
    assert ratio_to([turn(1, 4.0)], [turn(0, 2.0)]) is None
    assert ratio_to([], []) is None


@pytest.mark.parametrize(
    ("ratios", "noise"),
    [
        ((1.0, 1.0, 1.0, 1.0), 0.0),
        ((1.02, 0.96, 1.0, 1.125), 0.125),
        ((1.02, 0.8, 1.1, 1.0), 0.25),  # 1 / 0.8
        ((0.5, 1.0, 1.0, 1.0, 1.0), 1.0),  # half the time is as far from 1 as double the time
        ((1.25, 1.5, 1.25, 1.25), 0.5),  # always slower: the noise holds the whole of it
        ((0.8, 0.8, 0.8, 0.8), 0.25),
    ],
)
def test_the_noise_is_the_farthest_that_the_baseline_is_from_itself(ratios: tuple[float, ...], noise: float) -> None:
    baseline = [turn(number, 10.0 * 2**number, end_to_end=4.0) for number in range(len(ratios))]  # the machine slows down
    again = [turn(number, 10.0 * 2**number * ratio, end_to_end=5.0) for number, ratio in enumerate(ratios)]
    found = noise_of(again, baseline)
    assert found is not None
    assert found.session == pytest.approx(noise, abs=1e-12)
    assert found.end_to_end == 0.25


def test_the_noise_of_many_rounds_leaves_the_outer_tenths_out() -> None:
    ratios = [1.0] * 18 + [9.0, 0.01]
    found = noise_of([turn(i, ratio) for i, ratio in enumerate(ratios)], [turn(i, 1.0) for i in range(20)])
    assert found is not None
    assert found.session == 0.0


def test_no_noise_from_few_rounds() -> None:
    """Rounds that only one of the two ran, or that were disturbed, do not count."""
    assert LEAST_ROUNDS_FOR_NOISE == 4
    baseline = [turn(number, 1.0) for number in range(5)]
    again = [turn(number, 2.0) for number in range(5)]
    assert noise_of(again, baseline) == Noise(1.0, 0.0)
    assert noise_of(again[:4], baseline) == Noise(1.0, 0.0)
    assert noise_of(again[:3], baseline) is None
    assert noise_of([], baseline) is None
    calm = [*again[:4], turn(4, 99.0, disturbed=True)]
    assert noise_of(calm, baseline) == Noise(1.0, 0.0)
    assert noise_of(calm, [turn(0, 1.0, disturbed=True), *baseline[1:]]) is None


@pytest.mark.parametrize(
    ("ratio", "noise", "expected"),
    [
        *((1.25, 0.25, False), (0.8, 0.25, False), (1.26, 0.25, True), (0.79, 0.25, True)),
        *((0.51, 1.0, False), (0.49, 1.0, True), (1.0, 0.0, False), (1.01, 0.0, True), (0.01, 1.0, True)),
    ],
)
def test_beyond_the_noise(ratio: float, noise: float, expected: bool) -> None:
    assert is_beyond(ratio, noise) is expected


def test_a_ratio_within_the_noise_is_no_difference() -> None:
    baseline = [turn(number, 10.0) for number in range(4)]
    variant = [turn(number, 12.0, end_to_end=1.2) for number in range(4)]
    found = ratio_to(variant, baseline, Noise(0.25, 0.1))
    assert found is not None
    assert (found.noise, found.session_differs, found.end_to_end_differs) == (Noise(0.25, 0.1), False, True)
    found = ratio_to(variant, baseline)
    assert found is not None
    assert (found.noise, found.session_differs, found.end_to_end_differs) == (None, None, None)


@pytest.mark.parametrize("rounds", [4, 7, 30])
def test_the_baseline_never_differs_from_itself(rounds: int) -> None:
    random = np.random.default_rng(rounds)
    baseline, again = ([turn(i, *random.gamma(2.0, 1.0, 3)) for i in range(rounds)] for _ in range(2))
    for one, other in ((baseline, again), (again, baseline)):
        found = ratio_to(one, other, noise_of(one, other))
        assert found is not None
        assert found.session_differs is False
    # Which of the two is called the second makes no difference, or with interpolated percentiles hardly any.
    exact = 1e-12 if rounds < 10 else 0.05
    swapped, noise = noise_of(baseline, again), noise_of(again, baseline)
    assert swapped is not None
    assert noise is not None
    assert swapped.session == pytest.approx(noise.session, rel=exact)


def test_parts_are_the_turns_fields() -> None:
    item = turn(0, 7.0)
    assert [item.part(name) for name in PARTS] == [(1.0,), (7.0,), (1.0,), (1.0,)]


def test_percentiles_lie_between_samples() -> None:
    assert percentiles([1.0, 2.0, 3.0, 4.0], (0, 25, 50, 100)) == [1.0, 1.75, 2.5, 4.0]
