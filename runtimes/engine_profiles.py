"""Optimisation profiles: the ranges of shapes that an engine takes, and which of them an input falls into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, the one tuned for, largest


@dataclass(frozen=True)
class ShapeProfile:
    """One profile."""

    inputs: Mapping[str, Sizes]  # by name, with all dimensions

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether inputs of these shapes are in it."""
        return all(
            len(shape) == len(self.inputs[name][0])
            and all(low <= size <= high for low, size, high in zip(self.inputs[name][0], shape, self.inputs[name][2]))
            for name, shape in shapes.items()
        )

    def __str__(self) -> str:
        parts = (f"{name} {_text(low)} to {_text(high)}" for name, (low, _, high) in self.inputs.items())
        return ", ".join(parts)


def tightest(profiles: Sequence[ShapeProfile], shapes: Mapping[str, tuple[int, ...]]) -> Optional[int]:
    """The profile to run inputs of these shapes in, None when they fit none.

    It is the one with the smallest largest input, which is tuned closest; of several, the one tuned for the nearest size.
    """

    def cost(number: int) -> tuple[int, int]:
        sizes = profiles[number].inputs
        largest = sum(math.prod(sizes[name][2]) for name in shapes)
        return largest, sum(abs(math.prod(sizes[name][1]) - math.prod(shape)) for name, shape in shapes.items())

    return min((number for number, profile in enumerate(profiles) if profile.fits(shapes)), key=cost, default=None)


def describe_profiles(profiles: Sequence[ShapeProfile]) -> str:
    """All of them on one line."""
    return "; ".join(f"profile {number}: {profile}" for number, profile in enumerate(profiles))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
