"""Thresholds are numbers from 0 to 1. Here they are checked."""

from __future__ import annotations

from detr_export.runtimes.errors import InputError


def require_shares(**values: float) -> None:
    """Refuses a number outside of 0 to 1, or NaN; arguments are passed by the name that the message gives them.

    Raises:
        InputError: names the argument and its value.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; expected a number from 0 to 1")
