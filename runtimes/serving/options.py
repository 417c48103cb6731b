"""`ServerOptions`: what a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.thresholds import require_shares

INDEX = "index.html"  # the page that a folder of static files has to have
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ServerOptions:
    """Limits and habits of a server.

    Raises:
        InputError: a value is out of its range, or the folder has no index.html.
    """

    threshold: float = 0.5  # lowest score of what is returned, where a request does not say
    max_batch: int = 8  # pictures of one run of the model
    max_wait: float = 0.01  # seconds that a picture waits for others to share its batch
    mix_sizes: bool = False  # whether pictures of different sizes may share a padded batch
    places: int = 32  # requests that are in the server at once
    max_bytes: int = 20 * _MEBIBYTE  # of the body of a request
    max_pixels: int = 50_000_000  # of a picture
    max_memory: Optional[int] = None  # bytes that the pictures in the server may take together, estimated; see `Memory`
    timeout: float = 60.0  # seconds from the head of a request to its answer
    grace: float = 30.0  # seconds to answer what is in the server when it is told to stop
    front: Optional[Path] = None  # a folder of static files to serve at /; None for the page that comes along

    def __post_init__(self) -> None:
        require_shares(threshold=self.threshold)
        for name in ("max_batch", "places", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.max_memory is not None and self.max_memory < 1:
            raise InputError(f"max_memory is {self.max_memory}; expected at least 1")
        for name in ("max_wait", "grace"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more seconds")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"timeout is {self.timeout}; expected more than 0 seconds")
        require_at_most("pixels", self.max_pixels, "max_pixels", InputError)
        if self.front is not None and not (self.front / INDEX).is_file():
            raise InputError(f"{self.front} has no {INDEX}; expected a folder of static files that has one")
