"""The gate of an end-to-end file: it must find what the plain file finds behind the processor and before post-processing.

The plain graph is inside the end-to-end file, and passes the gate of plain files first. Then both run on images of many
sizes. The pixels that the graph makes may be a level off the processor's: the true value often lies half-way between two
levels, and transformers' own two processors, Pillow's and torchvision's, do not agree there either. What the detections
differ by between those two is the noise floor. A file may be
a small multiple of it off, or a fixed small amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detr_export.runtimes.described import processor_of
from detr_export.runtimes.errors import VerificationError, missing_extra
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.metadata import EndToEnd, Metadata
from detr_export.runtimes.processing.detection import center_to_corners, softmax
from detr_export.runtimes.processing.end_to_end import image_batch
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.sizes import as_size, output_size
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.session import Session
from detr_export.verification.cases import Case, make_images

LIMITS = {"pixels": 2.0, "scores": 2e-3, "boxes": 0.5, "masks": 2e-3}  # what always passes
MULTIPLE = 4.0  # times the noise floor, which passes too
_COUNTS = 0.05  # boxes and masks are compared of detections with a higher score; nobody draws others
_LEVEL_ROUNDING = 1e-3  # a level is measured in scaled pixels, which are rounded

# Height and width: landscape and portrait, odd sizes, enlarged and reduced, one pixel, twelve megapixels.
_SIZES = ((480, 640), (1080, 1920), (640, 427), (333, 499), (1, 1), (3000, 4000), (37, 61))
_LARGEST_WITHOUT_RESIZE = 700
_LARGEST_DRAWN = 640


@dataclass(frozen=True)
class EndToEndParity:
    """How an end-to-end file compared with the plain one in it. Dictionaries are by output, and numbers over all images.

    The outputs are "pixels", in levels of 255, "scores", "boxes", in pixels of the resized image, and "masks": the mean over
    a mask of the difference of probabilities.
    """

    max_abs_diff: dict[str, float]
    noise_floor: dict[str, float]  # how far the two processors of transformers are apart
    tolerance: dict[str, float]  # what passes
    images: int
    worst_image: dict[str, str]
    against: str = "the plain file"

    @property
    def passed(self) -> bool:
        """Whether every output stays within its tolerance."""
        return all(difference <= self.tolerance[name] for name, difference in self.max_abs_diff.items())

    def summary(self) -> str:
        """A line on the whole, and one on each output."""
        lines = [f"{'verified' if self.passed else 'FAILED'} end to end over {self.images} images against {self.against}"]
        return "\n".join(lines + [f"  {self._line(name)}" for name in self.max_abs_diff])

    def disagreement(self) -> str:
        """The outputs that are beyond their tolerance, with the image."""
        beyond = [name for name, difference in self.max_abs_diff.items() if not difference <= self.tolerance[name]]
        return ", ".join(f"{self._line(name)}, on {self.worst_image[name]}" for name in beyond)

    def _line(self, name: str) -> str:
        unit = {"pixels": " levels", "boxes": " pixels"}.get(name, "")
        return f"{name} differ by {self.max_abs_diff[name]:.1e}{unit} (at most {self.tolerance[name]:.1e})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON and metadata."""
        return {**asdict(self), "passed": self.passed}


def compare_end_to_end(
    candidate: Session, pixels: Session, plain: Session, metadata: Metadata, progress: Progress = SILENT
) -> EndToEndParity:
    """Runs an end-to-end file and the plain one on the same images.

    Args:
        candidate: the end-to-end file.
        pixels: its part before the model, from `image` to `pixel_values`.
        plain: the plain file in it, with metadata.
        metadata: of the end-to-end file.
        progress: told of each image.

    Raises:
        VerificationError: the outputs are not sorted, or not of the right shape.
    """
    options = metadata.end_to_end
    assert options is not None
    processor = processor_of(metadata)
    ours, theirs = ImageRunner(plain), ImageRunner(plain, other_processor(processor))
    worst: dict[str, tuple[float, str]] = {}
    floors: dict[str, float] = {}
    progress.stage("verifying end to end")
    cases = list(end_to_end_images(processor))
    for number, (name, image) in enumerate(cases, 1):
        feeds = image_batch([image], options.color)
        raw = raw_outputs(ours, image)
        others = best_detections(raw_outputs(theirs, image), image.shape[:2], options.top_k)
        resized = ours.prepare([image])["pixel_values"]
        found = checked_detections(candidate.run(feeds), options, name)
        difference = detection_differences(found, raw, image.shape[:2], resized.shape[2:])
        floor = detection_differences(others, raw, image.shape[:2], resized.shape[2:])
        found_off = {"pixels": _levels(pixels.run(feeds)["pixel_values"], resized, processor), **difference}
        for output, value in found_off.items():
            worst[output] = max(worst.get(output, (0.0, name)), (value, name))
            if output in floor:
                floors[output] = max(floors.get(output, 0.0), floor[output])
        progress.step(number, len(cases))
    return EndToEndParity(
        {output: value for output, (value, _) in worst.items()},
        floors,
        {output: max(LIMITS[output], MULTIPLE * floors.get(output, 0.0)) for output in worst},
        len(cases),
        {output: name for output, (_, name) in worst.items()},
    )


def end_to_end_images(processor: DetrImageProcessor) -> Iterator[tuple[str, np.ndarray]]:
    """Images of many sizes, with their names: uint8 (height, width, 3), RGB, mostly with structure, some of noise."""
    sizes = list(_SIZES)
    if processor.do_resize:
        sizes.append(output_size(480, 640, as_size(processor.size)))  # it stays as it is
    else:
        sizes = [size for size in sizes if max(size) <= _LARGEST_WITHOUT_RESIZE]
    for seed, (height, width) in enumerate(sizes):
        noise = seed % 4 == 2
        if noise:
            image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        else:
            (image,) = drawn_images(1, height, width, seed)
        yield f"{'noise' if noise else 'structure'}-{height}x{width}", image


def drawn_images(count: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Different images with structure: uint8 (height, width, 3).

    A large image is a smaller one, several times: to draw it takes longer than to run a small model on it.
    """
    rows, columns = min(height, _LARGEST_DRAWN), min(width, _LARGEST_DRAWN)
    for drawn in make_images(Case(rows, columns, ((rows, columns),) * count), seed)["pixel_values"]:
        yield np.tile(drawn, (-(-height // rows), -(-width // columns), 1))[:height, :width]


def other_processor(processor: DetrImageProcessor) -> DetrImageProcessor:
    """The same settings with the other library's arithmetic."""
    kind = DetrImageProcessor if isinstance(processor, DetrImageProcessorFast) else DetrImageProcessorFast
    settings = {name: value for name, value in processor.to_dict().items() if name != "image_processor_type"}
    return kind.from_dict(settings)


def raw_outputs(runner: ImageRunner, image: np.ndarray) -> Mapping[str, np.ndarray]:
    """`logits`, `pred_boxes` and maybe `pred_masks` of the plain file for one image, without the axis of the batch."""
    (batch,) = runner.run([image], padded=False)
    return {name: value[0] for name, value in batch.outputs.items()}


def best_detections(raw: Mapping[str, np.ndarray], size: tuple[int, int], top_k: int) -> dict[str, np.ndarray]:
    """What an end-to-end file would give, of raw outputs."""
    probabilities = softmax(raw["logits"])[:, :-1]
    scores = probabilities.max(axis=-1)
    order = np.argsort(-scores, kind="stable")[:top_k]
    height, width = size
    boxes = center_to_corners(raw["pred_boxes"]) * np.array([width, height, width, height], dtype=np.float32)
    masks = {"masks": raw["pred_masks"][order]} if "pred_masks" in raw else {}
    return {"scores": scores[order], "labels": probabilities.argmax(axis=-1)[order], "boxes": boxes[order], **masks}


def checked_detections(outputs: Mapping[str, np.ndarray], options: EndToEnd, name: str) -> dict[str, np.ndarray]:
    """The outputs for one image, without the axis of the batch."""
    found = {output: value[0] for output, value in outputs.items()}
    shapes = {output: value.shape[:1] for output, value in found.items()}
    if any(shape != (options.top_k,) for shape in shapes.values()):
        raise VerificationError(f"the outputs for {name} have {shapes} rows; expected {options.top_k}")
    if not (np.diff(found["scores"]) <= 0).all():
        raise VerificationError(f"the scores for {name} are not sorted")
    return found


def detection_differences(
    found: Mapping[str, np.ndarray], raw: Mapping[str, np.ndarray], size: tuple[int, int], resized: tuple[int, ...]
) -> dict[str, float]:
    """How far detections are from the raw outputs of the plain file, with each detection beside the query that it must be.

    Queries with nearly the same score may change places, so rows are assigned to queries: each to another one, and as close
    as possible in all. The score of a row is compared with the query's probability of the row's label, and a label that is
    not the query's own costs what the query is surer of its own. The scores are compared in their order, too.
    """
    probabilities = softmax(raw["logits"])[:, :-1]
    best = np.sort(probabilities.max(axis=-1))[::-1][: len(found["scores"])]
    to_resized = np.array([resized[1] / size[1], resized[0] / size[0]] * 2)
    expected = center_to_corners(raw["pred_boxes"]) * np.array([resized[1], resized[0]] * 2)
    boxes = np.abs(found["boxes"][:, None] * to_resized - expected).max(axis=-1)  # (K, Q)
    theirs = probabilities[:, found["labels"]].T  # (K, Q)
    scores = np.abs(found["scores"][:, None] - theirs) + probabilities.max(axis=-1) - theirs
    rows, queries = assigned(scores / LIMITS["scores"] + boxes / LIMITS["boxes"])
    counts = found["scores"][rows] > _COUNTS
    rows_counted, queries_counted = rows[counts], queries[counts]
    found_differences = {
        "scores": max(float(np.abs(found["scores"] - best).max()), float(scores[rows, queries].max())),
        "boxes": float(boxes[rows_counted, queries_counted].max(initial=0.0)),
    }
    if "masks" in found:
        pairs = (mask_probabilities(found["masks"][rows_counted]), mask_probabilities(raw["pred_masks"][queries_counted]))
        found_differences["masks"] = float(np.abs(pairs[0] - pairs[1]).mean(axis=(1, 2)).max(initial=0.0))
    return found_differences


def assigned(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a matrix that belong together: each row with another column, at the least cost in all.

    Raises:
        BackendError: scipy is not installed. A machine that compares plain files does without it.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise missing_extra("scipy", "export") from error
    rows, columns = linear_sum_assignment(cost)
    return rows, columns


def mask_probabilities(logits: np.ndarray) -> np.ndarray:
    """The logistic function, of logits of any size."""
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))


def _levels(pixels: np.ndarray, expected: np.ndarray, processor: DetrImageProcessor) -> float:
    """The largest difference in levels of 255; infinite if the sizes differ."""
    if pixels.shape != expected.shape:
        return np.inf
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    deviation = np.asarray(processor.image_std if processor.do_normalize else 1.0)
    level = factor / np.broadcast_to(deviation, 3)[:, None, None]
    off = float((np.abs(pixels - expected) / level).max())
    return float(np.round(off)) if abs(off - np.round(off)) < _LEVEL_ROUNDING else off
