"""Results compare by their values, arrays included."""

from __future__ import annotations

from typing import Any

import numpy as np


class Value:
    """A result that equals another of its class with the same values. It has no hash, because its arrays may be changed."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_equal(one, vars(other)[name]) for name, one in vars(self).items())

    __hash__ = None  # type: ignore[assignment]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, Exception):  # Python compares errors by identity, and a copy is another object
        return type(one) is type(other) and one.args == other.args
    return bool(one == other)
