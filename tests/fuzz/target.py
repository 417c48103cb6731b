"""What a target of the fuzzer is, and what counts as a finding."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.runtimes.errors import DetrError
from tests.fuzz.mutation import Mutation

Function = Callable[[bytes], None]

LONGEST = 5.0  # seconds of the CPU for one input
# Lower than the limits for users, so that an input that is within them is also done soon: see docs/limits.md.
LIMITS = {"pixels": 1 << 18, "edge": 2048, "batch_pixels": 1 << 18, "points": 100_000, "checkpoint_bytes": 1 << 30}
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A public reader, fed with inputs."""

    name: str  # also of its folder in `corpus`
    prepare: Callable[[Path], Function]  # takes an empty folder of its own; what it returns reads one input
    mutate: Mutation
    runs: int  # of 10^6 inputs over all targets; the cheap ones have many
    short: int = 100  # inputs in the ordinary tests


@dataclass(frozen=True)
class Finding:
    """What a reader did that it must not do."""

    kind: str  # the exception's class, "slow", "stuck" or "died"
    place: str  # the innermost line of the project
    message: str

    @property
    def key(self) -> str:
        """Findings with one key are one finding."""
        return f"{self.kind} at {self.place}"


class OutOfRangeError(Exception):
    """A reader accepted an input and returned what nobody can use."""


def try_input(function: Function, data: bytes) -> Finding | None:
    """Runs a target once. Only the project's errors may come out, and no warning."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(data)
    except DetrError as error:
        if not str(error).strip():
            return Finding("empty message", _place(error), type(error).__name__)
    except Exception as error:
        return Finding(type(error).__name__, _place(error), " ".join(str(error).split())[:200])
    seconds = time.process_time() - start
    return Finding("slow", "", f"{seconds:.1f} s for {len(data)} bytes") if seconds > LONGEST else None


def require_finite(value: Any, what: str) -> None:
    """Refuses NaN and infinity in an array, a number, or what holds them."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise OutOfRangeError(f"{what} has values that are not finite")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise OutOfRangeError(f"{what} is {value}")
    elif isinstance(value, dict):
        for key, item in value.items():
            require_finite(item, f"{what}.{key!s:.40}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            require_finite(item, what)


def _place(error: Exception) -> str:
    """The innermost line of the project, outside of this folder, that an exception passed through."""
    found = "outside of the project"
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if "detr_export" in file.parts and "site-packages" not in file.parts and "fuzz" not in file.parts[-2:-1]:
            name = file.as_posix().rpartition("detr_export/")[2]
            found = f"{name}:{frame.name}"
    return found
