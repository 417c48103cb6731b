"""Optimisation profiles: the ranges of shapes that an engine is built for and takes.

The user gives them as MIN:OPT:MAX, or they are derived from the way the processor resizes images. An input runs in the
tightest profile that it fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from detr_export.runtimes.errors import ArtifactError, InputError
from detr_export.runtimes.mask_head import size_of_dimension
from detr_export.runtimes.processing.sizes import output_size
from detr_export.runtimes.session import TensorSpec

_THINNEST = 32  # pixels; a thinner image is smaller than one cell of the feature map
_PHOTO = (480, 640)  # height and width of a 4:3 photograph, which profiles for landscapes are tuned for
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)")
_DIMENSIONS = ("batch", "height", "width")
_TUNED_QUERIES = 10  # objects of a usual picture

BatchSize = tuple[int, int, int]  # batch, height and width in pixels
Sizes = tuple[
    tuple[int, ...], tuple[int, ...], tuple[int, ...]
]  # the smallest size, the size that is tuned for, the largest


@dataclass(frozen=True)
class ShapeProfile:
    """One profile, by inputs."""

    inputs: Mapping[str, Sizes]  # sizes of all dimensions, by the name of the input

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether inputs of these shapes fit the profile."""
        return all(
            len(shape) == len(self.inputs[name][0])
            and all(low <= size <= high for low, size, high in zip(self.inputs[name][0], shape, self.inputs[name][2]))
            for name, shape in shapes.items()
        )

    def __str__(self) -> str:
        parts = (f"{name} {_text(low)} to {_text(high)}" for name, (low, _, high) in self.inputs.items())
        return ", ".join(parts)


@dataclass(frozen=True)
class EngineProfile:
    """One profile, by batch, height and width."""

    minimum: BatchSize
    optimum: BatchSize  # the size for which TensorRT chooses the kernels
    maximum: BatchSize

    def __str__(self) -> str:
        return ":".join("x".join(map(str, size)) for size in (self.minimum, self.optimum, self.maximum))


def parse_profile(text: str) -> EngineProfile:
    """Reads MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH, as in 1x800x800:1x800x1066:4x800x1333. One size stands for all three.

    Raises:
        InputError: the text is malformed, or the sizes do not grow from MIN to MAX.
    """
    matches = [_SIZE.fullmatch(part) for part in text.split(":")]
    sizes = [tuple(int(number) for number in match.groups()) for match in matches if match]
    if len(sizes) != len(matches) or len(sizes) not in (1, 3):
        raise InputError(
            f"profile is {text!r}; expected MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH, as in 1x800x800:1x800x1066:4x800x1333"
        )
    if len(sizes) == 1:
        sizes *= 3
    if min(sizes[0]) < 1 or any(not low <= best <= high for low, best, high in zip(*sizes)):
        raise InputError(f"profile is {text!r}; expected sizes from 1 that grow from MIN over OPT to MAX in every dimension")
    minimum, optimum, maximum = ((size[0], size[1], size[2]) for size in sizes)
    return EngineProfile(minimum, optimum, maximum)


def default_profiles(processor: Mapping[str, Any], max_batch: int) -> list[EngineProfile]:
    """Profiles for the sizes that the processor gives images.

    DETR's rule (shorter side 800, longer side at most 1333) needs three: landscapes, portraits, and squares, which also
    take padded batches of mixed images. With `max_batch` above 1 there are two of each, one for single images and one for
    batches.

    Args:
        processor: the settings, as in `preprocessor_config.json`.
        max_batch: the largest batch.

    Raises:
        InputError: the settings have no upper limit for the size, so no profile can be derived.
    """
    if processor.get("pad_size") is not None:
        pad = processor["pad_size"]
        return batched([((pad["height"], pad["width"]),) * 3], max_batch)
    size = processor.get("size") or {}
    if set(size) == {"height", "width"}:
        return batched([((size["height"], size["width"]),) * 3], max_batch)
    if set(size) == {"max_height", "max_width"}:
        largest = (size["max_height"], size["max_width"])
        return batched([((min(_THINNEST, largest[0]), min(_THINNEST, largest[1])), largest, largest)], max_batch)
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if set(size) == {"longest_edge"} and longest is not None:
        landscape, thin = output_size(*_PHOTO, size), min(_THINNEST, longest)
        return batched(
            [
                ((thin, longest), landscape, (longest, longest)),
                ((longest, thin), (landscape[1], landscape[0]), (longest, longest)),
            ],
            max_batch,
        )
    if shortest is None or longest is None:
        raise InputError(f"the processor's size is {dict(size)}, without an upper limit; give the shapes with --profile")
    thin = min(_THINNEST, shortest)
    landscape = output_size(*_PHOTO, size)
    return batched(
        [
            ((thin, shortest), landscape, (shortest, longest)),
            ((shortest, thin), (landscape[1], landscape[0]), (longest, shortest)),
            ((shortest, shortest), (shortest, shortest), (longest, longest)),
        ],
        max_batch,
    )


def shape_profile(profile: EngineProfile, inputs: tuple[TensorSpec, ...], queries: Optional[int] = None) -> ShapeProfile:
    """The shapes of all inputs in a profile.

    Args:
        profile: sizes of batches of images.
        inputs: of a model, or of a mask head, whose dimensions are those of feature maps: "ceil(height/32)".
        queries: of a mask head: how many it draws at most. It is tuned for few.

    Raises:
        ArtifactError: an input has a dimension that is none of these.
    """
    drawn = (1, 1, 1) if queries is None else (1, min(_TUNED_QUERIES, queries), queries)
    sizes: dict[str, Sizes] = {}
    for spec in inputs:
        batches = (profile.minimum, profile.optimum, profile.maximum)
        shapes = [_shape(spec, {**dict(zip(_DIMENSIONS, size)), "queries": n}) for size, n in zip(batches, drawn)]
        sizes[spec.name] = (shapes[0], shapes[1], shapes[2])
    return ShapeProfile(sizes)


def single_images(profiles: Sequence[EngineProfile]) -> list[EngineProfile]:
    """The profiles with a batch of 1, each once: a mask head runs for one image at a time."""
    found = {EngineProfile((1, *p.minimum[1:]), (1, *p.optimum[1:]), (1, *p.maximum[1:])): None for p in profiles}
    return list(found)


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else _named_size(dim, spec, sizes) for dim in spec.shape)


def _named_size(dim: str, spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    size = size_of_dimension(dim, sizes)
    if size is None:
        raise ArtifactError(
            f"{spec} has the dimension {dim}; expected batch, height and width: export it with detr-export onnx"
        )
    return size


def batched(sides: list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]], max_batch: int) -> list[EngineProfile]:
    """A profile of single images for each of `sides` and, with `max_batch` above 1, one of batches.

    Args:
        sides: heights and widths: the smallest, the size that is tuned for, the largest.
        max_batch: the largest batch.

    Raises:
        InputError: `max_batch` is below 1.
    """
    if max_batch < 1:
        raise InputError(f"the largest batch is {max_batch}; expected at least 1")
    ranges = [(1, 1, 1)] + ([(2, max_batch, max_batch)] if max_batch > 1 else [])
    return [
        EngineProfile((low, *minimum), (best, *optimum), (high, *maximum))
        for low, best, high in ranges
        for minimum, optimum, maximum in sides
    ]


def tightest(profiles: Sequence[ShapeProfile], shapes: Mapping[str, tuple[int, ...]]) -> Optional[int]:
    """The number of the profile in which inputs of these shapes run best, or None if they fit no profile.

    That is the profile whose maximum is smallest, because it is tuned best. If several are equal, it is the one whose
    optimum is nearest.
    """

    def cost(number: int) -> tuple[int, int]:
        sizes = profiles[number].inputs
        largest = sum(math.prod(sizes[name][2]) for name in shapes)
        return largest, sum(abs(math.prod(sizes[name][1]) - math.prod(shape)) for name, shape in shapes.items())

    return min((number for number, profile in enumerate(profiles) if profile.fits(shapes)), key=cost, default=None)


def describe_profiles(profiles: Sequence[ShapeProfile]) -> str:
    """All profiles on one line."""
    return "; ".join(f"profile {number}: {profile}" for number, profile in enumerate(profiles))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
