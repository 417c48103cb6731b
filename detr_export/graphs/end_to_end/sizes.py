"""The processor's size rules (`runtimes.processing.sizes.output_size`) as nodes of a graph, for any image size.

The processor computes sizes in float64, and one rounding there decides about a whole pixel: with 800/1333, an image of
298x1 pixels becomes 1332 long, not 1333. About one in twenty of the long images are like that. Engines have no float64, so
the graph finds out in integers how float64 rounds. They are int64, and OpenVINO computes with int32: for sides up to
`LARGEST_SIDE` no value reaches 2^31. OpenVINO divides by way of float32, too, so `_divided` corrects its quotients.

TensorRT computes sizes on the CPU, and only of tensors with one axis. So no value has two. From each operator it concludes
how large a size can be, and keeps memory for that. So every size passes through a Min with a limit that it never exceeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detr_export.graphs.end_to_end.building import Nodes, Value
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.processing.sizes import SizeDict

LARGEST_SIDE = 16384  # pixels of the image that comes in, and of what it is resized to
_POWERS = np.array([0, *(2**exponent for exponent in range(1, 30))])  # the first always fits
_STEPS = np.array([1, *(2**exponent for exponent in range(29))])  # what each power is more than the one before


def resized(nodes: Nodes, height: Value, width: Value, size: SizeDict) -> tuple[Value, Value]:
    """The (height, width) that `output_size` gives, and 1 where it refuses an image that is too thin.

    Args:
        nodes: the graph that grows.
        height, width: int64 (1,), sizes of the image. Of (N, 1), too, it gives (N, 1).
        size: from `as_size`.

    Raises:
        ArtifactError: `size` has no such rule, or it is larger than `LARGEST_SIDE`.
    """
    limits = [value for value in size.values() if value is not None]
    if max(limits, default=0) > LARGEST_SIDE:
        raise ArtifactError(f"the processor's size is {size}; an end-to-end file resizes to at most {LARGEST_SIDE} pixels")
    keys = set(size)
    if keys == {"shortest_edge", "longest_edge"}:
        result = _edge_size(nodes, height, width, size["shortest_edge"], size["longest_edge"])
    elif keys == {"longest_edge"} and limits:
        result = _longest_edge_size(nodes, height, width, size["longest_edge"])
    elif keys == {"max_height", "max_width"}:
        result = _largest_size(nodes, height, width, size["max_height"], size["max_width"])
    elif keys == {"height", "width"}:
        result = nodes.constant([size["height"]]), nodes.constant([size["width"]])
    else:
        raise ArtifactError(f"the processor's size is {size}, which no image can be resized to; correct the checkpoint's")
    return nodes.add("Max", result[0], [1]), nodes.add("Max", result[1], [1])


def _edge_size(nodes: Nodes, height: Value, width: Value, shortest: int, longest: int | None) -> tuple[Value, Value]:
    short, long = nodes.add("Min", height, width), nodes.add("Max", height, width)
    new_short, new_long = nodes.constant([shortest]), _divided(nodes, long * shortest, short)[0]
    if longest is not None:
        product = short * longest
        bound = long * shortest > product
        new_short = nodes.where(bound, _half_even(nodes, product, long), new_short)
        new_long = nodes.where(
            bound, longest - nodes.cast(_long_edge_falls_short(nodes, short, long, longest), np.int64), new_long
        )
    unchanged = short.equals(new_short)
    new_short, new_long = nodes.where(unchanged, short, new_short), nodes.where(unchanged, long, new_long)
    if longest is not None:  # no image is longer; a thin one that stays as it is may be longer than `longest`
        new_long = nodes.add("Min", new_long, longest // (short * 2 - 1) + longest)
    new_short = nodes.add("Min", new_short, [shortest])
    portrait = width < height
    return nodes.where(portrait, new_long, new_short), nodes.where(portrait, new_short, new_long)


def _longest_edge_size(nodes: Nodes, height: Value, width: Value, longest: int) -> tuple[Value, Value]:
    long = nodes.add("Max", height, width)

    def side(length: Value) -> Value:
        # Half a pixel is rounded to even, unless float64 is above or below the half.
        quotient, rest = _divided(nodes, length * longest, long)
        tie = (rest * 2).equals(long)
        below, above = _scaled_rounding(nodes, nodes.constant([longest]), long, length)
        odd = (quotient % 2).equals(1)
        up_at_tie = above | (odd & nodes.add("Not", below))
        return nodes.add("Min", quotient + nodes.cast((tie & up_at_tie) | (rest * 2 > long), np.int64), [longest])

    return side(height), side(width)


def _largest_size(nodes: Nodes, height: Value, width: Value, max_height: int, max_width: int) -> tuple[Value, Value]:
    by_height = height * max_width >= width * max_height  # the height is what limits the scale
    limit = nodes.where(by_height, [max_height], [max_width])
    side = nodes.where(by_height, height, width)

    def scaled(length: Value, largest: int) -> Value:
        quotient, rest = _divided(nodes, limit * length, side)
        below, _ = _scaled_rounding(nodes, limit, side, length)
        return nodes.add("Min", quotient - nodes.cast(rest.equals(0) & below, np.int64), [largest])

    return scaled(height, max_height), scaled(width, max_width)


def _half_even(nodes: Nodes, numerator: Value, denominator: Value) -> Value:
    """The quotient, rounded to the nearest integer, and half to even as Python's `round`."""
    quotient, rest = _divided(nodes, numerator, denominator)
    # An odd quotient counts as a little more than half.
    up = rest * 2 + quotient % 2 > denominator
    return quotient + nodes.cast(up, np.int64)


def _long_edge_falls_short(nodes: Nodes, short: Value, long: Value, longest: int) -> Value:
    """Whether `longest * short / long * long / short` is below `longest` in float64."""
    product = short * longest
    unit = _power_below(nodes, product)
    power = _power_below(nodes, _divided(nodes, product * 2, long)[0])  # twice the quotient's, which is one half at least
    below, _ = _rounding(nodes, _Division(product, long, power, 2), long, unit * 2 // power, product.equals(unit))
    # One unit in the last place of the product then is missing, and it must be more than half of one of the quotient.
    halves = 2 if longest & (longest - 1) == 0 else 1  # below a power of two the units are half as large
    missing = unit * halves * nodes.where(product.equals(unit), [1], [2])
    return below & (missing > short * 2 ** (longest.bit_length() - 1))


def _scaled_rounding(nodes: Nodes, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    """`_rounding` of `a / b * c`, where each of the three is a side."""
    twice, _ = _divided(nodes, a * 2 * c, b)  # the product
    unit = _power_below(nodes, twice)
    power = _power_below(nodes, a * 2**14 // b)  # 2^14 times that of the quotient
    return _rounding(nodes, _Division(a, b, power, 2**14), c, unit * 2**13 // power, twice.equals(unit))


@dataclass(frozen=True)
class _Division:
    """A quotient a / b."""

    a: Value
    b: Value
    power: Value  # the largest power of two that is at most the quotient, times `scale`
    scale: int


def _rounding(nodes: Nodes, quotient: _Division, c: Value, growth: Value, is_power: Value) -> tuple[Value, Value]:
    """Whether a quotient times c in float64 is below, and whether it is above, the true value, a multiple of one half.

    A quotient between 2^k and 2^(k+1) has the unit 2^(k-52). What it is rounded by, times c, moves the product if it is
    more than half of the product's own unit. Products of other values are meaningless here.

    Args:
        nodes: the graph that grows.
        quotient: what is rounded first.
        c: the factor.
        growth: the largest power of two that is at most the product, divided by that of the quotient.
        is_power: whether the product is a power of two; the units below it are half as large.
    """
    a, b = quotient.a, quotient.b
    # a * 2^(52 - k) modulo 2b: the rest of the division, and in its highest bit whether the quotient is odd. The factors
    # are so small that no product reaches 2^31.
    modulus = b * 2
    inverse = quotient.scale * 2**14 // quotient.power  # 2^(14 - k)
    first = nodes.add("Min", inverse, [2**14])
    _, rest = _divided(nodes, a, modulus)
    for factor in (2**13, 2**13, 2**12, first, inverse // first):
        _, rest = _divided(nodes, rest * factor, modulus)
    odd = nodes.cast(rest >= b, np.int64)
    rest = rest - odd * b
    error = nodes.where(rest * 2 + odd > b, b - rest, -rest)  # of the quotient, in units of 1 / b
    moved, half_unit = error * c * 2, b * growth
    return -moved * nodes.where(is_power, [2], [1]) > half_unit, moved > half_unit


def _divided(nodes: Nodes, a: Value, b: Value) -> tuple[Value, Value]:
    """The quotient and the rest of integers that are not negative. The quotient is below 2^23.

    A division by way of float32 may be off by one, and then the rest is negative or not below b.
    """
    quotient = a // b
    rest = a - quotient * b
    step = nodes.cast(rest >= b, np.int64) - nodes.cast(rest < 0, np.int64)
    return quotient + step, rest - step * b


def _power_below(nodes: Nodes, value: Value) -> Value:
    """The largest power of two that is at most an integer of at least 1."""
    return nodes.add("ReduceSum", nodes.where(value >= _POWERS, _STEPS, 0), [-1], keepdims=1)
