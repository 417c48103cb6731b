"""Variants in one process that take turns run by run: for differences of a few percent, on a machine that does other work.

`detr-bench` gives each variant a process of its own. Here what else the machine does meets all variants alike.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from detr_export.benchmarks.speed.environment import describe_environment
from detr_export.runtimes.cpu import instruction_sets
from detr_export.runtimes.errors import DetrError, first_line

Run = Callable[[], object]


def interleaved_times(
    runs: Mapping[str, Run], rounds: int, refused: dict[str, str], warm_up: int = 2
) -> dict[str, list[float]]:
    """Times the runs of all variants, one of each in every round.

    Args:
        runs: by the variant's name.
        rounds: how many.
        refused: gets the reason of each variant that fails. Such a variant has no times.
        warm_up: runs of each variant before the first round.

    Returns:
        Milliseconds by variant, in the order of the rounds.
    """
    times: dict[str, list[float]] = {}
    for name, run in runs.items():
        with noting(refused, name):
            for _ in range(warm_up):
                run()
            times[name] = []
    for number in range(rounds):
        order = list(times)
        for name in order[number % len(order) :] + order[: number % len(order)]:  # nobody always follows the same one
            begin = time.perf_counter()
            runs[name]()
            times[name].append((time.perf_counter() - begin) * 1e3)
    return times


def summarize(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Milliseconds by variant, and their ratios to those of the first one."""
    first, *_ = times.values()
    return {
        "ms": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "median_ms": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "ratio_of_medians": {
            name: round(statistics.median(values) / statistics.median(first), 4) for name, values in times.items()
        },
        "ratio_of_minima": {name: round(min(values) / min(first), 4) for name, values in times.items()},
        "median_of_ratios": {
            name: round(statistics.median(one / other for one, other in zip(values, first, strict=True)), 4)
            for name, values in times.items()
        },
    }


def framed(
    what: str, subject: Mapping[str, Any], threads: int, load_before: float, rounds: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """A report for JSON.

    Args:
        what: says what the numbers are.
        subject: what was measured.
        threads: of one run of a model.
        load_before: of the machine, before the first run.
        rounds: how many there were.
        found: the numbers.
    """
    return {
        "what": what,
        **subject,
        "environment": {**asdict(describe_environment(threads)), "instruction_sets": instruction_sets()},
        "load_before": round(load_before, 2),
        "rounds": rounds,
        **found,
    }


@contextlib.contextmanager
def noting(refused: dict[str, str], name: str) -> Iterator[None]:
    """Notes why a variant does not take part."""
    try:
        yield
    except DetrError as error:
        refused[name] = first_line(error)
