"""`TritonOptions`: what a model in a repository is told when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.thresholds import require_shares
from detr_export.runtimes.triton.interface import FORMS

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SIZE = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})", re.ASCII)
_MOST = 2**31 - 1  # of the schema's numbers, which are int32
# The options that go into config.pbtxt, which the versions of a model share, as the command line spells them.
_SHARED = {
    "task": "--task",
    "form": "--input",
    "threshold": "--threshold",
    "device": "--device",
    "threads": "--threads",
    "instances": "--instances",
    "max_batch": "--max-batch",
    "max_wait": "--max-wait-ms",
    "preferred_batches": "--preferred-batch",
    "keep_versions": "--keep-versions",
    "warm_up": "--warm-up",
}


@dataclass(frozen=True)
class TritonOptions:
    """None means the default, which the comment gives.

    Raises:
        InputError: a value is out of its range.
    """

    name: str | None = None  # of the model in the server; the stem of the file
    version: int | None = None  # 1
    overwrite: bool = False  # whether the model, or with `version` that version, may be there already
    task: str | None = None  # panoptic if the model draws masks, else detection
    form: str | None = None  # of the pictures: "pixels", or "encoded" image files
    threshold: float | None = None  # 0.5; lowest score where a request does not say
    device: str | None = None  # cuda for an engine, else cpu
    threads: int | None = None  # the runtime's default
    instances: int | None = None  # 1; copies of the model that run side by side
    max_batch: int | None = None  # 8, or the most that the model takes if that is less
    max_wait: float | None = None  # 0.0; seconds that a request waits for others
    preferred_batches: tuple[int, ...] = ()  # sizes of batches that are run at once
    keep_versions: int | None = None  # 1; how many versions, the latest, the server has open
    warm_up: tuple[tuple[int, int], ...] = ()  # (height, width) of pictures that run before the model is ready

    def __post_init__(self) -> None:
        if self.name is not None:
            require_name(self.name, "name")
        if self.form is not None and self.form not in FORMS:
            raise InputError(f"input is {self.form!r}; expected one of {', '.join(FORMS)}")
        if self.threshold is not None:
            require_shares(threshold=self.threshold)
        for field in ("version", "threads", "instances", "max_batch", "keep_versions"):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= _MOST:
                raise InputError(f"{field} is {value}; expected 1 to {_MOST}")
        if self.max_wait is not None and not 0 <= self.max_wait <= _MOST / 1e6:
            raise InputError(f"max_wait is {self.max_wait}; expected 0 to {_MOST / 1e6:.0f} seconds")
        if any(size < 1 for size in self.preferred_batches):
            raise InputError(f"a preferred batch is {min(self.preferred_batches)}; expected at least 1")
        if len(set(self.warm_up)) < len(self.warm_up):
            raise InputError("a size of warm-up is there twice; give each once")

    def shared(self) -> tuple[str, ...]:
        """The options with a value that go into `config.pbtxt`, as the command line spells them."""
        return tuple(option for name, option in _SHARED.items() if getattr(self, name) not in (None, ()))


def require_name(name: str, what: str) -> str:
    """The name of a model, which is also that of its folder and a part of addresses.

    Raises:
        InputError: it has other characters than such a name may have.
    """
    if _NAME.fullmatch(name) is None:
        raise InputError(
            f"{what} is {name!r:.160}; expected letters, digits, '_', '-' and '.', at most 128, and no '-' or '.' first; "
            "give another one with --name"
        )
    return name


def parse_size(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH, as in 480x640.

    Raises:
        InputError: the text is malformed, or the picture would be too large.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"the size is {text!r:.80}; expected HEIGHTxWIDTH, as in 480x640")
    height, width = int(match[1]), int(match[2])
    require_at_most("edge", max(height, width), f"the longer side of {text}", InputError)
    require_at_most("pixels", height * width, f"the number of pixels of {text}", InputError)
    return height, width
