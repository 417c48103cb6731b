"""Fuzzes one target in this process: `python -m tests.fuzz.worker`.

Nobody runs it by hand: `tests.fuzz` starts it, watches its count, and starts another one where it died or got stuck. What it
imports at the top imports nothing of the project, whose modules are instrumented when they are imported.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.board import Board
from tests.fuzz.mutation import MOST_BYTES

if TYPE_CHECKING:
    from tests.fuzz.target import Target
    from tests.fuzz.trying import Recorder

MEMORY = 1 << 30  # bytes that an input may take, beside what is in memory before the first one


def main() -> None:
    """Reads the arguments of `tests.fuzz`."""
    parser = argparse.ArgumentParser()
    for name in ("--target", "--board", "--findings", "--corpus", "--folder"):
        parser.add_argument(name, required=True)
    for name in ("--runs", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()

    with contextlib.nullcontext() if given.plain else _instrumented():
        from detr_export.runtimes.limits import raise_limits
        from tests.fuzz.target import LIMITS, try_input
        from tests.fuzz.targets import TARGETS
        from tests.fuzz.trying import Recorder, bounded_memory, plain

        target = TARGETS[given.target]
        function = target.prepare(Path(given.folder))
    raise_limits(**LIMITS)
    seeds = [file.read_bytes() for file in sorted(Path(given.corpus).iterdir())]
    for data in seeds[:3]:  # what is imported late is in memory before the bound is set
        try_input(function, data)
    record = Recorder(function, Board(Path(given.board)), Path(given.findings))
    with bounded_memory(MEMORY):
        if given.plain:
            plain(target, record, seeds, given.runs, given.seed)
        else:
            _guided(target, record, Path(given.corpus), given.runs, given.seed)


def _instrumented() -> contextlib.AbstractContextManager[None]:
    """Modules of the project that are imported in it tell atheris which lines they reach."""
    import atheris

    return atheris.instrument_imports(include=["detr_export"])


def _guided(target: Target, record: Recorder, corpus: Path, runs: int, seed: int) -> None:
    """Tries inputs, led by the lines of the project that they reach. It does not return."""
    import atheris

    def mutate(data: bytes, most: int, number: int) -> bytes:
        return target.mutate(data, random.Random(number))[:most]

    # The process that started this one looks after time and memory.
    options = [f"-runs={runs}", f"-seed={seed or 1}", f"-max_len={MOST_BYTES}", "-timeout=100000", "-rss_limit_mb=0"]
    options.append(f"-artifact_prefix={corpus.parent}/")
    atheris.Setup(["fuzz", *options, str(corpus)], record, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
