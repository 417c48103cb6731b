"""Pure functions on image arrays: layout, pixel scaling, padding.

Source: the arithmetic of the PIL-based `DetrImageProcessor` in transformers 4.57.6, in the same order. Every function here
gives the numbers of that code bit for bit. So rounding that looks odd (truncation to uint8, float64 then float32) is
intended.

Shapes: an image is (C, H, W) in layout "channels_first" and (H, W, C) in layout "channels_last".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from detr_export.runtimes.errors import ImageError, OptionError
from detr_export.runtimes.processing.byte_scaling import Steps

FIRST = "channels_first"
LAST = "channels_last"

Channels = Union[float, Iterable[float]]  # one value for all channels, or one for each


def as_layout(value: Optional[str], name: str) -> Optional[str]:
    """`value` as one of the two layout names, or None. Raises OptionError, which names the option `name`."""
    if value is None:
        return None
    for layout in (FIRST, LAST):
        if value == layout:  # a plain string, also for a string enumeration
            return layout
    raise OptionError(f"{name}={value!r}: expected {FIRST!r} or {LAST!r}")


def infer_layout(shape: tuple[int, ...]) -> str:
    """The layout of a 3-D array. The first or last axis has 1 or 3 entries, the channels; if both have, it is the first."""
    if shape[0] in (1, 3):
        return FIRST
    if shape[-1] in (1, 3):
        return LAST
    raise ImageError(
        f"array of shape {shape} has neither 1 nor 3 channels: expected (3, H, W) or (H, W, 3); "
        "convert it to RGB, or say where the channels are with input_data_format"
    )


def height_width(array: np.ndarray, layout: str) -> tuple[int, int]:
    """(height, width) of a 3-D array."""
    return (array.shape[1], array.shape[2]) if layout == FIRST else (array.shape[0], array.shape[1])


def to_layout(array: np.ndarray, source: str, target: Optional[str]) -> np.ndarray:
    """A view of a 3-D array in layout `target`, or the array itself if that is None."""
    if target is None or source == target:
        return array
    return array.transpose(1, 2, 0) if source == FIRST else array.transpose(2, 0, 1)


def rescale(array: np.ndarray, factor: float) -> np.ndarray:
    """`array * factor`, computed in float64 and returned as float32."""
    return (array.astype(np.float64) * factor).astype(np.float32)


def normalize(array: np.ndarray, mean: Channels, std: Channels, layout: str) -> np.ndarray:
    """`(array - mean) / std` for each channel, in the array's own float type (float32 for integers).

    Raises OptionError if `mean` or `std` does not have one finite value for each channel, or `std` has a zero.
    """
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    mean_, std_ = mean_and_std(mean, std, array, layout)
    return (array - mean_) / std_


def mean_and_std(mean: Channels, std: Channels, array: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Both in the dtype of `array`, with shape (C, 1, 1) or (1, 1, C) to fit the layout; errors as in `normalize`."""
    channels = array.shape[0] if layout == FIRST else array.shape[2]
    axes = (slice(None), None, None) if layout == FIRST else (None, None, slice(None))
    mean_, std_ = (_for_channels(v, channels, n).astype(array.dtype)[axes] for v, n in ((mean, "mean"), (std, "std")))
    if not std_.all():
        raise OptionError(f"image_std={std!r} divides by zero: expected positive numbers")
    return mean_, std_


def _for_channels(value: Channels, channels: int, name: str) -> np.ndarray:
    values = np.asarray(value if np.ndim(value) == 0 else list(value), dtype=np.float64)  # type: ignore[arg-type]
    if values.ndim == 1 and len(values) != channels:
        raise OptionError(
            f"image_{name} has {len(values)} values for {channels} channels: expected one for each, or a single number"
        )
    if not np.isfinite(values).all():
        raise OptionError(f"image_{name}={value!r}: expected finite numbers")
    return np.broadcast_to(values, (channels,))


@dataclass(frozen=True)
class PixelScaling:
    """Rescaling, then normalisation. Each of them can be left out."""

    factor: Optional[float]  # None: no rescaling
    mean: Optional[Channels]  # None: no normalisation
    std: Optional[Channels]

    @property
    def changes_pixels(self) -> bool:
        return self.factor is not None or self.mean is not None

    def apply(self, array: np.ndarray, layout: str) -> np.ndarray:
        """Scaled values in float32. Float images that are not rescaled keep their dtype."""
        if self.factor is not None:
            array = rescale(array, self.factor)
        if self.mean is not None and self.std is not None:
            array = normalize(array, self.mean, self.std, layout)
        return array

    def table(self, channels: int) -> np.ndarray:
        """float32 (channels, 256): the result of `apply` for every uint8 value."""
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (channels, 1, 256))
        return self.apply(ramp, FIRST)[:, 0, :]

    def steps(self, channels: int) -> Steps:
        """Steps in float32 that give the numbers of `table`, for usual values of `factor`.

        It divides by 1 / factor: dividing by 255 rounds as a product in float64 does, and multiplying by 1 / 255 does not.
        """
        steps: list[tuple[np.ufunc, np.ndarray]] = []
        if self.factor is not None:
            with np.errstate(all="ignore"):
                steps.append((np.divide, np.full(channels, np.divide(1, self.factor)).astype(np.float32)))
        if self.mean is not None and self.std is not None:
            mean, std = mean_and_std(self.mean, self.std, np.empty((channels, 1, 1), dtype=np.float32), FIRST)
            steps += [(np.subtract, mean.ravel()), (np.divide, std.ravel())]
        return steps


def pad(array: np.ndarray, size: tuple[int, int], layout: str, value: Any = 0) -> np.ndarray:
    """Pads at the bottom and right to `size` (height, width).

    `value` is a number, a pair (before, after), or one pair each for height and width, as in `np.pad`.
    """
    height, width = height_width(array, layout)
    edges: list[tuple[int, int]] = [(0, size[0] - height), (0, size[1] - width)]
    shape = np.shape(value)
    if shape not in ((), (1,), (2,), (2, 2)):
        raise OptionError(f"constant_values={value!r}: expected a number, a pair, or a pair for height and for width")
    values = [tuple(pair) for pair in np.broadcast_to(value, (2, 2)).tolist()]
    at = 0 if layout == FIRST else 2
    edges.insert(at, (0, 0))
    values.insert(at, (0, 0))
    return np.pad(array, edges, mode="constant", constant_values=values)


def pixel_masks(sizes: list[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    """int64 (B, H, W): 1 where image b has a pixel, 0 where it was padded."""
    masks = np.zeros((len(sizes), *size), dtype=np.int64)
    for mask, (height, width) in zip(masks, sizes):
        mask[:height, :width] = 1
    return masks
