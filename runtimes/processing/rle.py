"""Run-length encoding of binary masks in COCO's two forms, as pycocotools reads and writes them.

Uncompressed: ``{"size": [height, width], "counts": [n0, n1, ...]}``. The mask is read column by column (top to bottom,
then left to right) and the counts are the lengths of its runs, zeros first; ``n0`` is 0 when the first pixel is set.

Compressed: the counts become ASCII text (`rleToString` in COCO's `maskApi.c`). From the fourth on, a count is
stored as its difference to the count two places before. Each number is cut into groups of 5 bits, lowest first, in
two's complement. A group is one character, ``48 + bits``, plus 32 if more groups of the same number follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.limits import require_at_most

GROUP_BITS = 5
MORE_GROUPS = 1 << GROUP_BITS
SIGN_BIT = 1 << (GROUP_BITS - 1)
FIRST_CHARACTER = 48  # "0"
MAX_GROUPS = 12  # 60 bits of an int64
MAX_PIXELS = 2**31 - 1  # COCO's own code counts in 32 bits, with a sign
_LARGEST = 2.0**62  # numbers below it add up without an overflow

Counts = Union[Sequence[int], np.ndarray]


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """The uncompressed run-length encoding of a mask.

    Args:
        mask: (height, width), bool or any number; non-zero is set.

    Returns:
        ``{"size": [height, width], "counts": list of int}``, ready for JSON and for `pycocotools.mask.frPyObjects`.

    Raises:
        InputError: `mask` does not have two axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError(f"mask has shape {mask.shape}, expected (height, width); encode one mask at a time")
    pixels = (mask != 0).ravel(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate([[0], edges, [pixels.size]])
    if pixels.size and pixels[0]:
        bounds = np.concatenate([[0], bounds])
    return {"size": [int(side) for side in mask.shape], "counts": np.diff(bounds).tolist()}


def encode_compressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """`encode_rle` with its counts as COCO's text: ``{"size": [height, width], "counts": str}``; errors as there."""
    rle = encode_rle(mask)
    return {"size": rle["size"], "counts": compress_counts(rle["counts"])}


def decode_rle(rle: Mapping[str, Any], size: Optional[tuple[int, int]] = None) -> np.ndarray:
    """The mask of a run-length encoding, compressed or not.

    Args:
        rle: ``size`` [height, width], and ``counts``: a list of int, or the text or bytes of `compress_counts`.
        size: (height, width) that it must have; any when None.

    Returns:
        uint8 (height, width), 1 where the mask is set; in Fortran order, like pycocotools' masks.

    Raises:
        AnnotationError: as `checked_counts`.
    """
    runs, shape = checked_counts(rle, size)
    values = np.zeros(len(runs), dtype=np.uint8)
    values[1::2] = 1
    return np.repeat(values, runs).reshape(shape, order="F")


def checked_counts(rle: Mapping[str, Any], size: Optional[tuple[int, int]] = None) -> tuple[np.ndarray, tuple[int, int]]:
    """The counts and the size of a run-length encoding, before memory for a mask is taken.

    pycocotools checks none of this, and writes past the end of its memory if the counts are more than the size.

    Args:
        rle, size: as in `decode_rle`.

    Returns:
        int64 (N,), lengths of runs, which add up to the size; and (height, width).

    Raises:
        AnnotationError: a key is missing or does not hold integers, the size is another than `size` or has more pixels than
            the limit allows, a count is negative, there are far too many, or their sum is not the size.
    """
    if "size" not in rle or "counts" not in rle:
        raise AnnotationError(f"run-length encoding has keys {sorted(map(str, rle))!s:.80}, expected size and counts")
    shape = _checked_size(rle["size"], size)
    pixels = shape[0] * shape[1]
    counts = rle["counts"]
    # One run for each pixel is the most that a mask needs, and an empty one before them; empty ones may also stand between.
    most = 2 * pixels + 2
    if isinstance(counts, (str, bytes)):
        if len(counts) > MAX_GROUPS * most:
            raise AnnotationError(
                f"counts of the run-length encoding are text of {len(counts)} characters for {pixels} pixels"
            )
        counts = decompress_counts(counts)
    if isinstance(counts, (list, tuple, np.ndarray)) and len(counts) > most:
        raise AnnotationError(f"run-length encoding has {len(counts)} counts for {pixels} pixels, expected fewer")
    runs = _integers("counts", counts)
    if runs.size and runs.min() < 0:
        raise AnnotationError(f"run-length encoding has a count of {runs.min()}, expected counts of 0 or more")
    total = sum(runs.tolist())  # integers of Python: those of numpy overflow
    if total != pixels:
        raise AnnotationError(
            f"counts of the run-length encoding add up to {total}, expected {shape[0]}x{shape[1]} = {pixels} "
            "pixels; check that size is [height, width] of the same image"
        )
    return runs, shape


def compress_counts(counts: Counts) -> str:
    """The text that COCO writes for a list of counts.

    Args:
        counts: int (N,), lengths of runs in pixels, zeros first.

    Returns:
        ASCII text; its ``.encode()`` is what pycocotools has under ``counts``.
    """
    runs = np.asarray(counts, dtype=np.int64).reshape(-1)
    values = runs.copy()
    values[3:] -= runs[1:-2]

    shifts = GROUP_BITS * np.arange(MAX_GROUPS, dtype=np.int64)
    shifted = values[:, None] >> shifts  # (N, MAX_GROUPS): the rest of each number before a group is taken from it
    rest = shifted >> GROUP_BITS
    groups = shifted & (MORE_GROUPS - 1)
    # A group is the last one if its sign bit says what the rest is: zeros for plus, ones for minus.
    more = rest != np.where(groups & SIGN_BIT, -1, 0)
    wanted = np.ones_like(more)
    wanted[:, 1:] = np.logical_and.accumulate(more, axis=1)[:, :-1]
    characters = FIRST_CHARACTER + groups + MORE_GROUPS * more
    return characters[wanted].astype(np.uint8).tobytes().decode("ascii")


def decompress_counts(text: str | bytes) -> list[int]:
    """The counts that COCO's text stands for; the inverse of `compress_counts`.

    Args:
        text: the result of `compress_counts` or of pycocotools.

    Returns:
        Lengths of runs in pixels, zeros first.

    Raises:
        AnnotationError: a character is outside COCO's alphabet, the text stops in the middle of a number, or a number does
            not fit into 64 bits.
    """
    # The characters as numbers, checked
    data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - FIRST_CHARACTER
    if codes.size == 0:
        return []
    outside = np.flatnonzero((codes < 0) | (codes >= 2 * MORE_GROUPS))
    if outside.size:
        at = int(outside[0])
        raise AnnotationError(
            f"compressed run-length counts have byte {data[at]} at position {at}, expected "
            f"{FIRST_CHARACTER}..{FIRST_CHARACTER + 2 * MORE_GROUPS - 1}; the counts are damaged or have another format"
        )

    # Where each number starts and ends
    ends = np.flatnonzero(codes < MORE_GROUPS)  # the last character of each number
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise AnnotationError("compressed run-length counts stop inside a number; the text is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_GROUPS:
        raise AnnotationError(
            f"compressed run-length counts have a number of {lengths.max()} characters, expected {MAX_GROUPS} at "
            "most; the text is damaged"
        )

    # The numbers, from their groups of bits
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & (MORE_GROUPS - 1)) << (GROUP_BITS * place), starts)
    negative = (codes[ends] & SIGN_BIT) != 0
    values[negative] -= np.int64(1) << (GROUP_BITS * lengths[negative])

    # The counts, from the differences: odd positions build on position 1, even ones on position 2; 0 stands alone.
    for place_ in (1, 2):
        if np.abs(np.cumsum(values[place_::2], dtype=np.float64)).max(initial=0) > _LARGEST:
            raise AnnotationError("compressed run-length counts have a number of more than 62 bits; the text is damaged")
        values[place_::2] = np.cumsum(values[place_::2])
    return values.tolist()


def _checked_size(value: Any, expected: Optional[tuple[int, int]]) -> tuple[int, int]:
    size = _integers("size", value)
    if len(size) != 2 or size.min() < 0:
        raise AnnotationError(f"run-length encoding has size {size.tolist()!s:.80}, expected [height, width] in pixels")
    height, width = size.tolist()
    if expected is not None and (height, width) != tuple(expected):
        raise AnnotationError(
            f"run-length encoding has size {[height, width]}: expected [height, width] = {list(expected)} of the image; "
            "encode the mask at the size of the image"
        )
    require_mask_pixels(height, width, f"run-length encoding of size {[height, width]}: its number of pixels")
    return height, width


def require_mask_pixels(height: int, width: int, what: str) -> None:
    """Refuses a mask that is larger than the limit, or than COCO's own code can count; `what` names its pixels."""
    require_at_most("pixels", height * width, what, AnnotationError)
    if height * width > MAX_PIXELS:
        raise AnnotationError(f"{what} is {height * width}; expected at most {MAX_PIXELS}, which COCO's own code can count")


def _integers(field: str, values: Any) -> np.ndarray:
    """`values` as int64 (N,). Raises an AnnotationError that names `field`."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # lists of several lengths
        array = np.empty(1, dtype=object)
    if array.ndim == 1 and array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (isinstance(values, (list, tuple)) and _has_bool(values)):
        raise AnnotationError(f"{field} of a run-length encoding is {shown(values)}, expected a list of integers")
    if array.dtype.kind == "u" and array.max() >= 2**63:
        raise AnnotationError(f"{field} of a run-length encoding has {array.max()}, expected integers below 2^63")
    return array.astype(np.int64)


def _has_bool(values: Sequence[Any]) -> bool:
    """Whether true or false is among numbers: numpy would take them for 1 and 0."""
    return bool in set(map(type, values))
