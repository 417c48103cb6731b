"""What every task and actor of a run knows. It is pickled, so it is small."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from detr_export.runtimes.limits import VARIABLE, raise_limits_from


@dataclass(frozen=True)
class ModelOptions:
    """How a model is opened; as in `open_session`."""

    path: str
    device: str = "cpu"
    threads: Optional[int] = None
    trust_engine: bool = False
    processor: Optional[str] = None
    strict: bool = False
    cache: Optional[str] = None


@dataclass(frozen=True)
class Work:
    """What is done with each picture; as in `predict_files`."""

    task: str = "detection"
    threshold: float = 0.5
    batch: int = 1
    clip: bool = True
    classes: Optional[tuple[str, ...]] = None  # names of the classes that are kept, sorted; None for all
    allow_truncated: bool = False
    allow_http: bool = False


@dataclass(frozen=True)
class Job:
    """One start of a run."""

    output: Path  # the folder for results, which all nodes see under this path
    token: str  # of this start; a worker of an earlier one writes nothing
    work: Work
    model: ModelOptions
    column: Optional[str]  # of the tables in the list; None if there are none
    directory: str  # the driver's, for relative paths
    limits: str  # those of `runtimes.limits` that differ from the defaults

    def enter(self) -> None:
        """Makes the process of a worker like the driver's: its folder, and its limits."""
        with suppress(OSError):  # a node without this folder has absolute paths
            os.chdir(self.directory)
        raise_limits_from(self.limits)


def surroundings() -> tuple[str, str]:
    """The `directory` and the `limits` of this process."""
    return os.getcwd(), os.environ.get(VARIABLE, "")
