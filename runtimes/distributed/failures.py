"""What a worker raised, out of what Ray made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, TypeVar

from ray.exceptions import RayTaskError

from detr_export.runtimes.errors import BackendError, DetrError, first_line

Value = TypeVar("Value")


def from_ray(work: Callable[[], Value]) -> Value:
    """What a function returns. Of an error that came through Ray, the one that was raised in the worker.

    Raises:
        DetrError: as in the worker.
        BackendError: Ray failed.
    """
    try:
        return work()
    except Exception as error:
        if isinstance(error, DetrError) and not isinstance(error, RayTaskError):
            raise
        ours = _ours_in(error)
        if ours is not None:
            raise ours from None
        raise BackendError(f"Ray failed: {type(error).__name__}: {first_line(error):.400}; start the run again") from error


def _ours_in(error: BaseException) -> Optional[DetrError]:
    """The error of ours in one that Ray made around it, as its own class: Ray's also inherits from a class of Ray's."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            if isinstance(found, DetrError):
                kind = next(kind for kind in type(found).__mro__ if kind.__module__ == DetrError.__module__)
                return kind(first_line(getattr(found, "cause", found)))  # Ray adds lines to the text
            waiting += [getattr(found, "cause", None), found.__cause__, found.__context__]
    return None
