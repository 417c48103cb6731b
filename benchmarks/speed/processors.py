"""What happens before and after the network: this project's processors beside transformers' slow and fast classes.

Why: with a fast network, resizing the image and merging the masks are a large part of the wait, and transformers makes for
one image a stack of full-size masks (100 x 800 x 1066 float32 = 340 MB) that it walks over several times for every query.

What: pre-processing of each of some images, one at a time; then detections, instance maps and a panoptic map from the
outputs of an imaginary model: 100 queries with masks of 200x267, scaled to 800x1066, of which 100 or 20 are kept. Each side
gets the same images or numbers in its own kind of array. Results are compared before anything is timed: pixels must be equal
bit for bit, or as the tests of this project allow; a difference beyond that is an error, for then the times mean nothing.

How: rounds are interleaved (ours, theirs, ours, theirs, ...) so that a machine that slows down or is shared slows both. A
ratio is taken within each round; its median over the rounds and their spread are reported. torch may use its threads, the
numpy side runs in one.
"""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from detr_export.benchmarks.oracle import import_transformers
from detr_export.benchmarks.speed.statistics import Timing, timing
from detr_export.runtimes.errors import InputError, VerificationError, missing_extra
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast

QUERIES = 100
CLASSES = 250  # the classes of the COCO panoptic checkpoints
MASK_SIZE = (200, 267)  # a quarter of the target, as the mask head makes them
TARGET_SIZE = (800, 1066)  # COCO's usual 480x640 after the processor's resizing
IMAGE_SIZES = ((480, 640), (427, 640), (640, 480))  # (height, width), the usual ones of COCO
KEPT = (100, 20)
FUSED_LABELS = frozenset(range(125, CLASSES))  # half of the classes
MAX_DIFFERING_PIXELS = 1e-4  # share of a map; two masks that tie within float32 rounding may fall either way
SCORE_TOLERANCE = 1e-5
# The fast class gives the same bits where torch has an AVX2 or AVX512 kernel for uint8 images. Elsewhere it goes through
# float32, and a pixel may be rounded to its neighbour: 1/255, over the least of the standard deviations.
PIXEL_STEP = 1.001 / 255 / 0.224

SLOW, FAST = "DetrImageProcessor", "DetrImageProcessorFast"  # on both sides


@dataclass(frozen=True)
class Row:
    """One comparison."""

    step: str  # "preprocess", "detections", "instances" or "panoptic"
    case: str  # what was processed
    ours: str  # name of our class
    reference: str  # of transformers'
    agreement: str  # what the comparison before the timing found
    ours_ms: Timing  # of one image, a sample a round
    reference_ms: Timing
    ratio_to_reference: float  # ours over theirs, the median over the rounds: below 1 is faster
    ratio_low: float  # its 10th percentile
    ratio_high: float  # its 90th


@dataclass(frozen=True)
class ProcessorReport:
    """What `run_processors` found."""

    rounds: int
    images: Sequence[tuple[int, int]]  # (height, width), pixels
    torch_threads: int
    machine: str
    versions: Mapping[str, str]
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; every sample is in it, in milliseconds."""
        return {
            "rounds": self.rounds,
            "images_px": [list(size) for size in self.images],
            "torch_threads": self.torch_threads,
            "machine": self.machine,
            "versions": dict(self.versions),
            "rows": [asdict(row) for row in self.rows],
        }

    def summary(self) -> str:
        """A table in plain text: medians of one image, and the ratio with its spread."""
        head = ("step", "case", "ours", "transformers", "agreement", "ours ms", "theirs ms", "ratio", "10 to 90 %")
        table = [
            head,
            *(
                (
                    *(row.step, row.case, row.ours, row.reference, row.agreement),
                    *(f"{row.ours_ms.p50:.2f}", f"{row.reference_ms.p50:.2f}", f"{row.ratio_to_reference:.2f}"),
                    f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
                )
                for row in self.rows
            ),
        ]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 5 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        about = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        how = f"{self.rounds} rounds; milliseconds an image; ratio = ours / theirs; torch threads {self.torch_threads}"
        return "\n".join([*lines, "", f"{how}; {about}"])


def run_processors(
    images: Sequence[Image.Image] | None = None,
    rounds: int = 15,
    torch_threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> ProcessorReport:
    """Compares and times the processors.

    Args:
        images: RGB; three seeded ones of COCO's usual sizes when None.
        rounds: timed, of every step.
        torch_threads: of transformers' side; torch's own choice when None.
        progress: called with a line for each step.

    Raises:
        BackendError: transformers, or the torchvision that its fast class needs, is not installed.
        InputError: there are no images, or an argument is not positive.
        VerificationError: the two sides disagree.
    """
    for name, count in (("rounds", rounds), ("torch_threads", torch_threads)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; expected at least 1")
    pictures = [picture(size, seed) for seed, size in enumerate(IMAGE_SIZES)] if images is None else list(images)
    if not pictures:
        raise InputError("there are no images; expected at least one")
    transformers = import_transformers()
    if importlib.util.find_spec("torchvision") is None:
        raise missing_extra("torchvision", "oracle")
    import torch

    slow, fast = transformers.DetrImageProcessor(), transformers.DetrImageProcessorFast()
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads or before)
    try:
        progress("preprocess")
        rows = _preprocessing(pictures, slow, fast, rounds)
        for kept in KEPT:
            for step in ("detections", "instances", "panoptic"):
                progress(f"{step}, {kept} of {QUERIES} queries kept")
                rows.append(_post_processing(step, kept, slow, rounds))
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return ProcessorReport(
        rounds=rounds,
        images=[(image.height, image.width) for image in pictures],
        torch_threads=threads,
        machine=platform.machine(),
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": Image.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        rows=rows,
    )


def interleaved(sides: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds that each side took in each round, all sides taking turns."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for run, samples in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            run()
            samples.append(time.perf_counter() - start)
    return seconds


def make_row(
    step: str,
    case: str,
    names: tuple[str, str],
    agreement: str,
    seconds: tuple[Sequence[float], Sequence[float]],
    images: int,
) -> Row:
    """Medians and ratios of what was timed.

    Args:
        step, case, agreement: as in `Row`.
        names: of our class and of theirs.
        seconds: of all images together, a sample a round: ours and theirs.
        images: how many there were.
    """
    ours, theirs = (timing(1e3 * value / images for value in side) for side in seconds)
    assert ours is not None
    assert theirs is not None
    ratios = np.divide(ours.samples, theirs.samples)
    low, middle, high = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    return Row(step, case, *names, agreement, ours, theirs, middle, low, high)


def require_equal_pixels(ours: Mapping[str, Any], theirs: Mapping[str, Any], step: float = 0.0) -> float:
    """Compares `pixel_values` and `pixel_mask` of both sides.

    Args:
        ours, theirs: a processor's result each, as numpy arrays.
        step: largest difference of a pixel value that is let pass; 0 asks for the same bits.

    Returns:
        The largest difference, 0 for the same bits.

    Raises:
        VerificationError: they differ by more, or have other shapes or masks.
    """
    if not np.array_equal(ours["pixel_mask"], theirs["pixel_mask"]):
        raise VerificationError("the pixel masks of the two sides differ; run: pytest tests/runtimes/processing")
    mine, other = np.asarray(ours["pixel_values"]), np.asarray(theirs["pixel_values"])
    if np.array_equal(mine, other):
        return 0.0
    largest = float(np.abs(mine - other).max())
    if not largest <= step:
        raise VerificationError(
            f"pixels of the two sides differ by {largest:.3g} (at most {step:.3g} expected); "
            "run: pytest tests/runtimes/processing"
        )
    return largest


def require_equal_detections(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Compares detections: the same labels and boxes, and scores up to the rounding of the exponential.

    Raises:
        VerificationError: they differ by more.
    """
    same = all(np.array_equal(ours[key], np.asarray(theirs[key])) for key in ("labels", "boxes"))
    scores = np.asarray(theirs["scores"])
    if not same or not np.allclose(ours["scores"], scores, rtol=0, atol=SCORE_TOLERANCE):
        raise VerificationError(
            "the detections of the two sides differ; run: pytest tests/runtimes/processing/test_post_processing.py"
        )
    return "bit-equal" if np.array_equal(ours["scores"], scores) else f"scores within {SCORE_TOLERANCE:.0e}"


def require_equal_maps(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Compares segmentation maps: the same segments, and the same id at almost every pixel.

    Raises:
        VerificationError: more than `MAX_DIFFERING_PIXELS` of the pixels differ, or segments are not the same.
    """
    share = float(np.mean(ours["segmentation"] != np.asarray(theirs["segmentation"])))
    same = len(ours["segments_info"]) == len(theirs["segments_info"]) and all(
        {**mine, "score": 0} == {**other, "score": 0} and abs(mine["score"] - other["score"]) <= SCORE_TOLERANCE
        for mine, other in zip(ours["segments_info"], theirs["segments_info"], strict=True)
    )
    if share > MAX_DIFFERING_PIXELS or not same:
        raise VerificationError(
            f"{share:.2e} of the pixels differ (at most {MAX_DIFFERING_PIXELS:.0e} expected) and the segments are "
            f"{'the same' if same else 'not the same'}; run: pytest tests/runtimes/processing/test_segmentation.py"
        )
    return "all pixels equal" if share == 0 else f"all but {share:.1e} of the pixels"


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A seeded RGB image of (height, width): smooth shapes with fine grain, as photographs have both."""
    random = np.random.default_rng(seed)
    height, width = size
    coarse = Image.fromarray(random.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + random.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8))


def spread_out_outputs(kept: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs of an imaginary model: one noisy ellipse a query, 4 to 20 % of the image height across, anywhere in it.

    Args:
        kept: how many of the queries have a class; the others say "no object".
        seed: of the random generator.

    Returns:
        logits float32 (1, 100, 251), pred_masks float32 (1, 100, 200, 267), in [-13, 10] or so, and pred_boxes float32
        (1, 100, 4), cxcywh in [0, 1], around the ellipses.
    """
    random = np.random.default_rng(seed)
    height, width = MASK_SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    masks = np.empty((1, QUERIES, height, width), dtype=np.float32)
    boxes = np.empty((1, QUERIES, 4), dtype=np.float32)
    for query in range(QUERIES):
        center_y, center_x = random.uniform(0, height), random.uniform(0, width)
        radius_y, radius_x = random.uniform(0.02, 0.1, size=2) * height
        distance = np.hypot((y - center_y) / radius_y, (x - center_x) / radius_x)
        masks[0, query] = np.clip(6 * (1 - distance), -12, 8) + random.normal(0, 0.3, (height, width))
        boxes[0, query] = center_x / width, center_y / height, 2 * radius_x / width, 2 * radius_y / height
    logits = random.normal(0, 1, (1, QUERIES, CLASSES + 1)).astype(np.float32)
    logits[0, :, CLASSES] = 12
    queries = random.permutation(QUERIES)[:kept]
    logits[0, queries, random.integers(0, CLASSES, kept)] = 14 + random.uniform(0, 3, kept)
    return {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}


def _preprocessing(pictures: Sequence[Image.Image], slow: Any, fast: Any, rounds: int) -> list[Row]:
    """Our two classes and their two, all in the same rounds."""

    def side(processor: Any, tensors: str) -> Callable[[], list[Any]]:
        return lambda: [processor(images=image, return_tensors=tensors) for image in pictures]

    # transformers' fast class computes in torch and gives nothing else
    sides = [side(DetrImageProcessor(), "np"), side(slow, "np"), side(DetrImageProcessorFast(), "np"), side(fast, "pt")]
    ours, theirs, ours_fast, theirs_fast = ([_as_arrays(batch) for batch in run()] for run in sides)  # also the warm-up
    largest = [
        max(require_equal_pixels(*both, step) for both in zip(*pair, strict=True))
        for pair, step in (((ours, theirs), 0.0), ((ours_fast, theirs_fast), PIXEL_STEP))
    ]
    seconds = interleaved(sides, rounds)
    case = "the image of " + _size(pictures[0]) if len(pictures) == 1 else f"{len(pictures)} images, each by itself"
    return [
        make_row("preprocess", case, (SLOW, SLOW), _agreement(largest[0]), (seconds[0], seconds[1]), len(pictures)),
        make_row("preprocess", case, (FAST, FAST), _agreement(largest[1]), (seconds[2], seconds[3]), len(pictures)),
        # Pillow's arithmetic against torchvision's: another result by design, so there is nothing to agree on
        make_row("preprocess", case, (SLOW, FAST), "other resizing", (seconds[0], seconds[3]), len(pictures)),
    ]


def _post_processing(step: str, kept: int, slow: Any, rounds: int) -> Row:
    import torch

    arrays = spread_out_outputs(kept)
    tensors = SimpleNamespace(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    method, require, options = {
        "detections": ("post_process_object_detection", require_equal_detections, {}),
        "instances": ("post_process_instance_segmentation", require_equal_maps, {}),
        "panoptic": ("post_process_panoptic_segmentation", require_equal_maps, {"label_ids_to_fuse": set(FUSED_LABELS)}),
    }[step]

    def side(processor: Any, outputs: Any) -> Callable[[], Any]:
        return lambda: getattr(processor, method)(outputs, target_sizes=[TARGET_SIZE], **options)[0]

    sides = [side(DetrImageProcessor(), arrays), side(slow, tensors)]
    agreement = require(sides[0](), sides[1]())  # also the warm-up
    ours, theirs = interleaved(sides, rounds)
    return make_row(step, f"{kept} of {QUERIES} queries kept", (SLOW, SLOW), agreement, (ours, theirs), 1)


def _as_arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items()}


def _agreement(largest: float) -> str:
    return f"within {largest:.1e}" if largest else "bit-equal"


def _size(image: Image.Image) -> str:
    return f"{image.height}x{image.width}"
