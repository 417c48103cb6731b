"""The processor's size rules (`runtimes.processing.sizes.output_size`) as nodes of a graph, for any image size.

The processor computes sizes in float64, and one rounding there decides about a whole pixel: with 800/1333, an image of
298x1 pixels becomes 1332 long, not 1333. About one in twenty of the long images are like that. Engines have no float64, so
the graph finds out in integers how float64 rounds. All values are int64 and stay below 2^62 for sides up to `LARGEST_SIDE`.

TensorRT computes sizes on the CPU, and only of tensors with one axis. So no value has two. From each operator it concludes
how large a size can be, and keeps memory for that. So every size passes through a Min with a limit that it never exceeds.
"""

from __future__ import annotations

import numpy as np

from detr_export.graphs.end_to_end.building import Nodes, Value
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.processing.sizes import SizeDict

LARGEST_SIDE = 16384  # pixels of the image that comes in, and of what it is resized to
_SCALE = 16  # quotients down to 2^-16
# The powers of two up to 2^45 but the first, which always fits; and what each is more than the one before.
_POWERS = np.array([0, *(2**exponent for exponent in range(1, 46))])
_STEPS = np.array([1, *(2**exponent for exponent in range(45))])


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
    new_short, new_long = nodes.constant([shortest]), long * shortest // short
    if longest is not None:
        product = short * longest
        bound = long * shortest > product
        new_short = nodes.where(bound, _half_even(nodes, product, long), new_short)
        new_long = nodes.where(
            bound, longest - nodes.cast(_long_edge_falls_short(nodes, short, long, longest), np.int64), new_long
        )
    unchanged = nodes.add("Equal", short, new_short)
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
        product = length * longest
        quotient, rest = product // long, product % long
        tie = nodes.add("Equal", rest * 2, long)
        below, above = _rounding(nodes, nodes.constant([longest]), long, length)
        odd = nodes.add("Equal", quotient % 2, 1)
        up_at_tie = above | (odd & nodes.add("Not", below))
        return nodes.add("Min", quotient + nodes.cast((tie & up_at_tie) | (rest * 2 > long), np.int64), [longest])

    return side(height), side(width)


def _largest_size(nodes: Nodes, height: Value, width: Value, max_height: int, max_width: int) -> tuple[Value, Value]:
    by_height = height * max_width >= width * max_height  # the height is what limits the scale
    limit = nodes.where(by_height, [max_height], [max_width])
    side = nodes.where(by_height, height, width)

    def scaled(length: Value, largest: int) -> Value:
        product = limit * length
        below, _ = _rounding(nodes, limit, side, length)
        exact = nodes.add("Equal", product % side, 0)
        return nodes.add("Min", product // side - nodes.cast(exact & below, np.int64), [largest])

    return scaled(height, max_height), scaled(width, max_width)


def _half_even(nodes: Nodes, numerator: Value, denominator: Value) -> Value:
    """The quotient, rounded to the nearest integer, and half to even as Python's `round`."""
    quotient, rest = numerator // denominator, numerator % denominator
    # An odd quotient counts as a little more than half.
    up = rest * 2 + quotient % 2 > denominator
    return quotient + nodes.cast(up, np.int64)


def _long_edge_falls_short(nodes: Nodes, short: Value, long: Value, longest: int) -> Value:
    """Whether `longest * short / long * long / short` is below `longest` in float64."""
    product = short * longest
    below, _ = _rounding(nodes, product, long, long)
    # One unit in the last place of the product then is missing, and it must be more than half of one of the quotient.
    missing = _power_below(nodes, product, nodes.constant([1])) // 2**_SCALE
    is_power = nodes.add("Equal", missing, product)  # below a power of two the units are half as large
    unit = 2 ** (longest.bit_length() - 1)
    halves = 4 if longest == unit else 2
    return below & (missing * halves * nodes.where(is_power, [1], [2]) > short * (2 * unit))


def _rounding(nodes: Nodes, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    """Whether `a / b * c` in float64 is below, and whether it is above, the true value, a multiple of one half.

    A quotient between 2^k and 2^(k+1) has the unit 2^(k-52). What it is rounded by, times c, moves the product if it is
    more than half of the product's own unit. Products and quotients of other values are meaningless here.
    """
    power = _power_below(nodes, a, b)  # 2^(k + 16)
    # a * 2^(52 - k) modulo 2b: the rest of the division, and in its highest bit whether the quotient is odd
    rest = a % (b * 2) * 2**26 % (b * 2) * (2**42 // power) % (b * 2)
    odd, rest = nodes.cast(rest >= b, np.int64), rest % b
    error = nodes.where(rest * 2 + odd > b, b - rest, -rest)  # of the quotient, in units of 1 / b

    twice = a * 2 * c // b  # of the product
    unit = _power_below(nodes, twice, nodes.constant([1])) // 2**_SCALE
    is_power = nodes.add("Equal", unit, twice)  # the units below it are half as large
    moved, half_unit = error * c * power * 2, b * unit * 2 ** (_SCALE - 1)
    return -moved * nodes.where(is_power, [2], [1]) > half_unit, moved > half_unit


def _power_below(nodes: Nodes, a: Value, b: Value) -> Value:
    """2^16 times the largest power of two that is at most a / b."""
    fits = a * 2**_SCALE >= b * _POWERS
    return nodes.add("ReduceSum", nodes.where(fits, _STEPS, 0), [-1], keepdims=1)
