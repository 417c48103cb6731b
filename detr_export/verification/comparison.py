"""The gate: an exported file must give the checkpoint's numbers on shapes and paddings that it was not traced with.

The grid holds batches of one to four, landscape, portrait, square and odd sizes, and images padded by a little, by a lot
and not at all. Beside the largest difference of each output, the report carries the *spread*: how far the outputs for two
different images lie apart. Where the spread is not far above the tolerance the comparison proves little, and it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from detr_export.runtimes.errors import ArtifactError, VerificationError
from detr_export.runtimes.metadata import UINT8, Metadata
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.runtimes.processing.transforms import LAST
from detr_export.runtimes.session import Session
from detr_export.seeding import random_images

# Largest absolute differences that fp32 rounding in another order of operations explains. Seen on R50 and R101 with
# seeded weights: 4e-5 on logits, 4e-6 on boxes, 4e-5 on masks; 1e-4 of a 1333 pixel image is a tenth of a pixel.
TOLERANCE: Mapping[str, float] = {"logits": 1e-3, "pred_boxes": 1e-4, "pred_masks": 1e-2, "cross_attention": 1e-3}
# Of an fp16 file. Seen with every result rounded to fp16 (`half_rounding`), on logits, boxes and masks: seeded tiny models
# 0.067, 0.031 and 0.48; seeded R18 0.034 and 0.0032; masks of the trained demo 6.2, where images differ by 94: it grows with
# the size of what is rounded. Attention weights of seeded tiny: 0.042. The tiny ones, of sharp attention and little width,
# set the limit for boxes; it still tells rounding from a mask or a layer gone wrong, which moves outputs as far as another
# image does. What rounding does to a trained model is for AP to say (`detr-export onnx --accuracy`).
FP16_TOLERANCE: Mapping[str, float] = {"logits": 0.2, "pred_boxes": 0.045, "pred_masks": 8.0, "cross_attention": 0.1}
_TOLERANCES = {"fp32": TOLERANCE, "fp16": FP16_TOLERANCE}
_WEAK_SPREAD = 10  # times the tolerance


@dataclass(frozen=True)
class Case:
    """One batch of the grid."""

    height: int  # pixels
    width: int
    valid: tuple[tuple[int, int], ...]  # (height, width) of each image before padding; its length is the batch size
    identical: bool = False  # one image, repeated

    def __str__(self) -> str:
        padded = sum(size != (self.height, self.width) for size in self.valid)
        notes = [f"{padded} padded"] * bool(padded) + ["identical"] * self.identical
        return f"{len(self.valid)}x{self.height}x{self.width}" + (f" ({', '.join(notes)})" if notes else "")


GRID = (
    Case(480, 640, ((480, 640),)),
    Case(320, 256, ((320, 256), (200, 256), (320, 131))),
    Case(224, 224, ((160, 223), (224, 224))),
    Case(333, 499, ((333, 499),)),
    Case(97, 161, ((97, 161), (1, 161), (64, 33), (96, 160))),
    Case(750, 512, ((125, 512), (750, 300))),
    Case(65, 513, ((65, 513), (40, 500))),
    Case(800, 1066, ((800, 1066),)),
)


@dataclass(frozen=True)
class Parity:
    """How a file compared with its checkpoint."""

    max_abs_diff: dict[str, float]  # by output, over the whole grid
    tolerance: dict[str, float]
    spread: dict[str, float]  # by output, the largest difference between two different images
    cases: int
    worst_case: str

    @property
    def passed(self) -> bool:
        """Whether every output stays within its tolerance; NaN does not."""
        return all(self.max_abs_diff[name] <= self.tolerance[name] for name in self.max_abs_diff)

    @property
    def weak(self) -> bool:
        """Whether the outputs depend so little on the image that agreement proves little."""
        return any(self.spread[name] < _WEAK_SPREAD * self.tolerance[name] for name in self.spread)

    def summary(self) -> str:
        """One line for people, a second one when the comparison proves little."""
        parts = [
            f"{name} {difference:.1e} (tolerance {self.tolerance[name]:.0e}, images differ by {self.spread[name]:.1e})"
            for name, difference in self.max_abs_diff.items()
        ]
        verdict = "verified" if self.passed else "FAILED"
        text = f"{verdict} over {self.cases} batches, largest differences: {', '.join(parts)}"
        if self.weak:
            text += "\nwarning: the outputs hardly depend on the image, so this proves little; is the checkpoint trained?"
        return text

    def disagreement(self) -> str:
        """The outputs that are beyond their tolerance, and the case that is worst."""
        parts = [
            f"{name} differs by {difference:.3g} (tolerance {self.tolerance[name]:.3g})"
            for name, difference in self.max_abs_diff.items()
            if not difference <= self.tolerance[name]
        ]
        return f"{', '.join(parts)}, worst at {self.worst_case}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON and metadata."""
        return {**asdict(self), "passed": self.passed, "weak": self.weak}


def fitting_cases(metadata: Metadata, grid: Iterable[Case] = GRID) -> list[Case]:
    """The cases that a model takes; without a pixel mask, each becomes a batch of images without padding."""
    cases = []
    for case in grid:
        limits = {"batch": len(case.valid), "height": case.height, "width": case.width}
        ranges = ((size, *metadata.ranges.get(name, (1, None))) for name, size in limits.items())
        if all(size >= low and (high is None or size <= high) for size, low, high in ranges):
            full = ((case.height, case.width),) * len(case.valid)
            cases.append(case if metadata.pixel_mask else replace(case, valid=full))
    return cases


def make_inputs(case: Case, channels: int, pixel_mask: bool, seed: int) -> dict[str, np.ndarray]:
    """Random images with structure, padded with zeros as the processor pads, and their mask."""
    batch = len(case.valid)
    pixels = random_images((batch, channels, case.height, case.width), seed)
    if case.identical:
        pixels[:] = pixels[0]
    mask = np.zeros((batch, case.height, case.width), dtype=np.int64)
    for index, (height, width) in enumerate(case.valid):
        mask[index, :height, :width] = 1
    pixels *= mask[:, None].astype(np.float32)
    return {"pixel_values": pixels, "pixel_mask": mask} if pixel_mask else {"pixel_values": pixels}


def make_images(case: Case, seed: int) -> dict[str, np.ndarray]:
    """Random images with structure as `pixel_values` uint8 (B, H, W, 3), and their `valid_sizes` int64 (B, 2).

    What lies beyond an image's own size is noise: a model must not see it.
    """
    pixels = random_images((len(case.valid), 3, case.height, case.width), seed)
    images = np.clip(128 + 50 * pixels, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    images = np.ascontiguousarray(images)
    noise = np.random.default_rng(seed).integers(0, 256, images.shape, dtype=np.uint8)
    for image, filling, (height, width) in zip(images, noise, case.valid, strict=True):
        image[height:], image[:, width:] = filling[height:], filling[:, width:]
    return {"pixel_values": images, "valid_sizes": np.array(case.valid, dtype=np.int64)}


def make_both(
    case: Case, channels: int, metadata: Metadata, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same images as a file takes them and as its checkpoint does.

    For a file that takes uint8 images, the checkpoint's inputs are what the image processor itself makes of them.
    """
    if metadata.input != UINT8:
        inputs = make_inputs(case, channels, metadata.pixel_mask, seed)
        return inputs, inputs
    given = make_images(case, seed)
    images = [image[:height, :width] for image, (height, width) in zip(given["pixel_values"], case.valid, strict=True)]
    processor = processor_from_dict(metadata.processor)
    expected = processor.preprocess(
        images,
        do_resize=False,
        do_pad=True,
        pad_size={"height": case.height, "width": case.width},
        input_data_format=LAST,
        return_tensors="np",
    )
    names = ("pixel_values", "pixel_mask") if metadata.pixel_mask else ("pixel_values",)
    if not metadata.pixel_mask:
        del given["valid_sizes"]
    expected["pixel_values"] = expected["pixel_values"].astype(np.float32, copy=False)  # uint8 where settings scale nothing
    return given, {name: expected[name] for name in names}


def tolerance_of_precision(precision: str) -> Mapping[str, float]:
    """The tolerances for `fp32` or `fp16`.

    Raises:
        ArtifactError: the precision is unknown.
    """
    if precision not in _TOLERANCES:
        raise ArtifactError(f"the file's precision is {precision!r}; expected one of {', '.join(_TOLERANCES)}")
    return _TOLERANCES[precision]


def tolerance_of(metadata: Metadata | None) -> Mapping[str, float]:
    """The tolerances for the precision that a file says it has; those of fp32 when it says nothing.

    Raises:
        ArtifactError: the precision is unknown.
    """
    return tolerance_of_precision(metadata.precision if metadata is not None else "fp32")


def compare(
    candidate: Session,
    reference: Session,
    grid: Iterable[Case] = GRID,
    tolerance: Mapping[str, float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Parity:
    """Runs both sessions over the grid and measures.

    Args:
        candidate: the file under test.
        reference: the checkpoint in PyTorch.
        grid: cases; those outside the model's ranges are left out.
        tolerance: by output name, the largest absolute difference; that of the candidate's precision when None.
        progress: called with a line for each case.

    Raises:
        ArtifactError: the candidate lacks an output, gives another shape, or takes no case of the grid.
    """
    metadata = candidate.metadata or reference.metadata
    assert metadata is not None  # a TorchSession always has it
    names = [spec.name for spec in reference.outputs]
    absent = set(names) - {spec.name for spec in candidate.outputs}
    if absent:
        raise ArtifactError(f"the file has no output {', '.join(sorted(absent))}; expected {', '.join(names)}")
    takes_padding = not {"pixel_mask", "valid_sizes"}.isdisjoint(spec.name for spec in candidate.inputs)
    metadata = replace(metadata, pixel_mask=takes_padding)
    tolerance = tolerance_of(metadata) if tolerance is None else tolerance
    dtypes = {spec.name: spec.dtype for spec in candidate.inputs}
    channels = reference.inputs[0].shape[1]
    assert isinstance(channels, int)

    largest = dict.fromkeys(names, 0.0)
    spread = dict.fromkeys(names, 0.0)
    first: dict[str, np.ndarray] = {}
    worst, worst_ratio = "", -1.0
    cases = fitting_cases(metadata, grid)
    if not cases:
        raise ArtifactError(f"no case of the verification grid fits the model's ranges {dict(metadata.ranges)}")
    for number, case in enumerate(cases):
        if progress:
            progress(f"{number + 1}/{len(cases)} {case}")
        inputs, original = make_both(case, channels, metadata, seed=number)
        given = candidate.run({name: array.astype(dtypes[name], copy=False) for name, array in inputs.items()})
        expected = reference.run(original)
        for name in names:
            if given[name].shape != expected[name].shape:
                raise ArtifactError(f"{name} has shape {given[name].shape} at {case}; expected {expected[name].shape}")
            difference = _distance(given[name], expected[name])
            largest[name] = max(largest[name], difference) if difference == difference else float("nan")
            # Maps have the size of their batch, so they are compared inside it; the rest across all batches.
            for anchor in (first.setdefault(name, expected[name][:1]), expected[name][:1]):
                if anchor.shape[1:] == expected[name].shape[1:]:
                    spread[name] = max(spread[name], _distance(expected[name], anchor))
            ratio = difference / tolerance[name] if difference == difference else float("inf")
            if ratio > worst_ratio:
                worst, worst_ratio = str(case), ratio
    return Parity(largest, {name: tolerance[name] for name in names}, spread, len(cases), worst)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which passes no test
        return float(np.abs(one.astype(np.float64) - other).max())


def require(parity: Parity, name: str) -> None:
    """Lets a file pass or not.

    Raises:
        VerificationError: an output differs by more than its tolerance.
    """
    if parity.passed:
        return
    raise VerificationError(f"{name} disagrees with its checkpoint: {parity.disagreement()}")
