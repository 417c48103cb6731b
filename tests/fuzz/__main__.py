"""`python -m tests.fuzz` feeds mutated inputs to the readers, and prints as JSON what came of it: docs/reliability.md."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.board import Board, has_coverage, work_folder
from tests.fuzz.target import Finding, Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.trying import file_name

_HERE = Path(__file__).parent
CORPUS, FINDINGS = _HERE / "corpus", _HERE / "findings"
_STUCK = 60.0  # seconds without a new input after which a worker is ended
_MOST_DEATHS = 10  # workers of one target that may die
_TOTAL = 1_000_000


@dataclass
class Result:
    """Of one target."""

    inputs: int
    seconds: float
    cpu_seconds: float  # what one core would need that does nothing else
    findings: list[dict[str, Any]]  # kind, place, message and file

    @property
    def speed(self) -> float:
        """Inputs per second of the CPU."""
        return self.inputs / max(self.cpu_seconds, 1e-9)


def fuzz(target: Target, runs: int, seconds: float | None, seed: int, plain: bool, keep: Path | None) -> Result:
    """Fuzzes one target, in processes of their own.

    Args:
        target: what to fuzz.
        runs: inputs at most.
        seconds: at most; None for no end.
        seed: decides the inputs, together with `runs`.
        plain: without coverage.
        keep: the folder that findings are written into.
    """
    start, cpu = time.monotonic(), _cpu_of_workers()
    with tempfile.TemporaryDirectory(dir=work_folder()) as name:
        folder = Path(name)
        corpus, findings, file = folder / "corpus", folder / "findings", folder / "board"
        shutil.copytree(CORPUS / target.name, corpus)
        findings.mkdir()
        board = Board(file)
        try:
            for attempt in range(_MOST_DEATHS):
                left = runs - board.count
                time_left = None if seconds is None else seconds - (time.monotonic() - start)
                if left <= 0 or (time_left is not None and time_left <= 0):
                    break
                work = folder / f"work-{attempt}"  # a worker does not clean up, as atheris ends it
                work.mkdir()
                places = {"folder": work, "board": file, "findings": findings, "corpus": corpus}
                options = {"target": target.name, "runs": left, "seed": seed + attempt, **places}
                arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
                ended = _watch([*arguments, *(["--plain"] if plain else [])], board, time_left)
                if ended is None:
                    break
                _write(findings, ended, board.current)
            inputs = board.count
        finally:
            board.close()
        found = _read(findings, target, keep)
    return Result(inputs, round(time.monotonic() - start, 1), round(_cpu_of_workers() - cpu, 1), found)


def _cpu_of_workers() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(arguments: list[str], board: Board, seconds: float | None) -> Finding | None:
    """Waits for a worker. The finding is that it died or got stuck; None if it ended well, or its time was over."""
    end = None if seconds is None else time.monotonic() + seconds
    with _started(arguments) as (process, log):
        count, since = board.count, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            if board.count != count:
                count, since = board.count, now
            if end is not None and now > end:
                process.kill()
                process.wait()
                return None
            if now - since > _STUCK:
                process.kill()
                process.wait()
                return Finding("stuck", "", f"{_STUCK:.0f} s without an end")
        if process.returncode == 0:
            return None
        log.flush()
        tail = Path(log.name).read_text(errors="replace").strip().splitlines()[-1:]
        return Finding("died", f"exit {process.returncode}", " ".join(tail)[:200])


@contextmanager
def _started(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "HF_HUB_OFFLINE": "1"}
    with tempfile.NamedTemporaryFile("w") as log:
        command = [sys.executable, "-m", "tests.fuzz.worker", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        try:
            yield process, log
        finally:
            process.kill()
            process.wait()


def _write(folder: Path, found: Finding, data: bytes) -> None:
    name = file_name(found)
    (folder / name).write_bytes(data)
    (folder / f"{name}.json").write_text(json.dumps(vars(found)))


def _read(folder: Path, target: Target, keep: Path | None) -> list[dict[str, Any]]:
    """All findings; their inputs are copied to `keep`, under the name of the target."""
    found = []
    for described in sorted(folder.glob("*.json")):
        item = json.loads(described.read_text())
        source = described.with_suffix("")
        item["file"] = f"{target.name}-{source.name}"
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, keep / item["file"])
        found.append(item)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="one reader; all if left out")
    parser.add_argument("--seconds", type=float, help="stop after so long in total, shared by the targets")
    parser.add_argument("--runs", type=int, default=_TOTAL, help="inputs in total; cheap targets have more of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without coverage; so it is too where atheris is missing")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="folder for the inputs of findings")
    given = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worker ends, too
    plain = given.plain or not has_coverage()
    targets = [TARGETS[name] for name in given.target or TARGETS]
    share = sum(target.runs for target in targets)
    results: dict[str, Result] = {}
    for target in targets:
        seconds = None if given.seconds is None else given.seconds / len(targets)
        result = fuzz(target, math.ceil(given.runs * target.runs / share), seconds, given.seed, plain, given.findings)
        results[target.name] = result
        told = f"{target.name}: {result.inputs} inputs, {result.speed:.0f}/s, {len(result.findings)} findings"
        print(told, file=sys.stderr, flush=True)
    document = {
        "engine": "plain" if plain else "atheris",
        "seed": given.seed,
        "inputs": sum(result.inputs for result in results.values()),
        "seconds": round(sum(result.seconds for result in results.values()), 1),
        "cpu_seconds": round(sum(result.cpu_seconds for result in results.values()), 1),
        "findings": sum(len(result.findings) for result in results.values()),
        "targets": {name: {**asdict(result), "inputs_per_second": round(result.speed)} for name, result in results.items()},
    }
    print(json.dumps(document, indent=2))
    sys.exit(1 if document["findings"] else 0)


if __name__ == "__main__":
    main()
