"""Writes the tables of docs/reliability.md: `make reliability`. With --count it prints the number of cases by group instead.

The cases are what pytest collects; the figures of long runs come from the JSON files in benchmarks/results/reliability.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
RESULTS = ROOT / "benchmarks/results/reliability"
_FOLDERS = ("tests/hostile", "tests/fuzz")
_NOT_MEASURED = "Not measured yet."


def count() -> dict[str, int]:
    """How many cases each file has, in the order of their names."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *_FOLDERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pytest cannot collect the cases:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = Counter(line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line)
    return dict(sorted(found.items()))


def tables() -> dict[str, Callable[[], str]]:
    """The parts of the page that are written, by the name between their marks."""
    return {
        "cases": lambda: cases(count()),
        "fuzz": lambda: figures("fuzz.json", fuzz),
        "soak": lambda: figures("soak.json", soak),
        "kills": lambda: figures("kill.json", kills),
    }


def cases(found: dict[str, int]) -> str:
    """The table of the groups. What a group is, is said by the first line of its file."""
    rows = [(Path(file).stem.removeprefix("test_"), about(ROOT / file), f"{number:,}") for file, number in found.items()]
    return table(("group", "what", "cases"), [*rows, ("**all**", "", f"**{sum(found.values()):,}**")])


def about(file: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def figures(name: str, written: Callable[[Any], str]) -> str:
    """What a file of results says; a placeholder where it was not made yet."""
    file = RESULTS / name
    return written(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else _NOT_MEASURED


def fuzz(document: dict[str, Any]) -> str:
    """Of `make fuzz`."""
    rows = [
        (f"`{name}`", f"{item['inputs']:,}", f"{item['cpu_seconds']:.0f}", f"{item['inputs_per_second']:,}", found_in(item))
        for name, item in document["targets"].items()
    ]
    total = (f"**{document['inputs']:,}**", f"{document['cpu_seconds']:.0f}", "", f"**{document['findings']}**")
    return table(("reader", "inputs", "seconds of one core", "inputs per second", "findings"), [*rows, ("**all**", *total)])


def found_in(item: dict[str, Any]) -> str:
    """The findings of a target, in words."""
    told = "; ".join(" ".join(filter(None, (found["kind"], found["place"]))) for found in item["findings"])
    return f"{len(item['findings'])}: {told}" if told else "0"


def soak(document: dict[str, Any]) -> str:
    """Of `make soak`."""
    shared, memory, cycles = document["shared"], document["memory_mb"], document["cycles"]
    rows = [
        ("runs", f"{shared['runs']:,} in {document['minutes']:g} minutes, {document['threads']} threads"),
        ("results that differ from one thread's", f"{shared['unequal']}, by {shared['worst']:g} at most"),
        ("exceptions", sum(shared["errors"].values())),
        (
            "memory",
            f"{memory['first']:.0f} to {memory['last']:.0f} MB after the warm-up; fitted: {memory['growth']:+.1f} MB",
        ),
        ("a process that was forked off", ", ".join(f"{action}: {end}" for action, end in document["forked"].items())),
        ("a process that was spawned", f"differs by {document['spawned_difference']:g}"),
        ("closed while running", ", ".join(f"{number} {end}" for end, number in document["closed_while_running"].items())),
        ("used after close", ", ".join(f"{number} {end}" for end, number in document["used_after_close"].items())),
        (
            f"opened and closed {cycles['count']} times",
            f"{cycles['descriptors']:+} descriptors, {cycles['threads']:+} threads, {cycles['memory_mb']:+.1f} MB",
        ),
        ("problems", ", ".join(document["problems"]) or "none"),
    ]
    return table(("what", "found"), rows)


def kills(document: dict[str, Any]) -> str:
    """Of `make kill`."""
    commands = [
        {name: value for name, value in item.items() if not isinstance(value, dict)} for item in document["commands"]
    ]
    shown = [{name: len(value) if isinstance(value, list) else value for name, value in item.items()} for item in commands]
    rows = [tuple(f"{value:,}" if isinstance(value, int) else str(value) for value in item.values()) for item in shown]
    return table(tuple(name.replace("_", " ") for name in shown[0]), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with its parts written anew; each stands between two marks with its name."""
    for name, text in parts.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        page, replaced = marks.subn(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", page)
        if replaced != 1:
            raise SystemExit(f"{PAGE} has {replaced} places for {name}; expected 1")
    return page


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--count", action="store_true", help="print the number of cases by group as JSON")
    if parser.parse_args().count:
        found = count()
        print(json.dumps({"groups": found, "cases": sum(found.values())}, indent=2))
        return
    parts = {name: make() for name, make in tables().items()}
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
