"""Runs both sides in turns, and compares their results before that."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from detr_export.benchmarks.oracle import import_transformers
from detr_export.benchmarks.speed.pictures import synthetic_picture
from detr_export.benchmarks.speed.processors.equality import (
    require_equal_detections,
    require_equal_maps,
    require_equal_pixels,
)
from detr_export.benchmarks.speed.processors.outputs import CLASSES, QUERIES, spread_out_outputs
from detr_export.benchmarks.speed.processors.report import ProcessorReport, Row
from detr_export.benchmarks.speed.statistics import percentiles, timing
from detr_export.runtimes.cpu import instruction_sets
from detr_export.runtimes.errors import InputError, missing_extra
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.threads import processing_threads
from detr_export.runtimes.progress import SILENT, Progress

TARGET_SIZE = (800, 1066)  # COCO's usual 480x640 after the processor's resizing
PICTURE_SIZES = ((480, 640), (427, 640), (640, 480))  # (height, width), the usual ones of COCO
LARGE_SIZES = ((800, 1066), (1080, 1920))  # one that needs no resizing, and a larger photo
KEPT = (100, 20)
FUSED_LABELS = frozenset(range(125, CLASSES))  # half of the classes
# The fast class gives the same bits where torch has an AVX2 or AVX512 kernel for uint8 images. Elsewhere it goes through
# float32, and a pixel may be rounded to its neighbour: 1/255, divided by the smallest of the standard deviations.
PIXEL_STEP = 1.001 / 255 / 0.224

SLOW, FAST = "DetrImageProcessor", "DetrImageProcessorFast"  # on both sides


@dataclass(frozen=True)
class Inputs:
    """What is preprocessed in one round."""

    name: str
    batches: Sequence[Sequence[Image.Image]]


def run_processors(
    images: Sequence[Image.Image] | None = None,
    rounds: int = 15,
    torch_threads: int | None = None,
    progress: Progress = SILENT,
) -> ProcessorReport:
    """Compares and times the processors.

    Args:
        images: RGB, which are processed one by one, and as a batch. When None: three seeded ones of COCO's usual sizes, and
            two larger ones, each of which has a row of its own.
        rounds: how often each step is timed.
        torch_threads: for the side of transformers; torch's own choice when None.
        progress: what is told of the stages.

    Raises:
        BackendError: transformers, or the torchvision that its fast class needs, is not installed.
        InputError: there are no images, or an argument is not positive.
        VerificationError: the two sides disagree.
    """
    for name, count in (("rounds", rounds), ("torch_threads", torch_threads)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; expected at least 1")
    pictures = _seeded(PICTURE_SIZES) if images is None else list(images)
    if not pictures:
        raise InputError("there are no images; expected at least one")
    large = _seeded(LARGE_SIZES) if images is None else []
    inputs = [
        Inputs(_named(pictures, "each by itself"), [[picture] for picture in pictures]),
        *(Inputs(_named([picture], ""), [[picture]]) for picture in large),
        Inputs(_named([*pictures, *large], "in one batch"), [[*pictures, *large]]),
    ]

    # Both classes of transformers are needed; the fast one needs torchvision.
    load = _load()
    transformers = import_transformers()
    if importlib.util.find_spec("torchvision") is None:
        raise missing_extra("torchvision", "oracle")
    import torch

    # Compare and time step by step, with the threads that were asked for.
    slow, fast = transformers.DetrImageProcessor(), transformers.DetrImageProcessorFast()
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads or before)
    try:
        progress.stage("preprocess")
        rows = [row for each in inputs for row in _preprocessing(each, slow, fast, rounds)]
        for kept in KEPT:
            for step in ("detections", "instances", "panoptic"):
                progress.stage(f"{step}, {kept} of {QUERIES} queries kept")
                rows.append(_post_processing(step, kept, slow, rounds))
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return ProcessorReport(
        rounds=rounds,
        images=[(image.height, image.width) for image in [*pictures, *large]],
        torch_threads=threads,
        processing_threads=processing_threads(),
        machine=platform.machine(),
        instruction_sets=instruction_sets(),
        load=load,
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
    """Seconds that each side took in each round; the sides take turns."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for run, samples in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            run()
            samples.append(time.perf_counter() - start)
    return seconds


def make_row(
    step: str,
    input: str,
    names: tuple[str, str],
    agreement: str,
    seconds: tuple[Sequence[float], Sequence[float]],
    images: int,
) -> Row:
    """Medians and ratios of what was timed.

    Args:
        step, input, agreement: as in `Row`.
        names: of our class and of theirs.
        seconds: of all images together, one sample for each round: ours and theirs.
        images: how many images there were.
    """
    ours, theirs = (timing(1e3 * value / images for value in side) for side in seconds)
    assert ours is not None
    assert theirs is not None
    ratios = np.divide(ours.samples, theirs.samples)
    low, middle, high = percentiles(ratios, (10, 50, 90))
    return Row(step, input, *names, agreement, ours, theirs, middle, low, high)


def _preprocessing(inputs: Inputs, slow: Any, fast: Any, rounds: int) -> list[Row]:
    """Our two classes and their two, all in the same rounds."""

    def side(processor: Any, tensors: str) -> Callable[[], list[Any]]:
        return lambda: [processor(images=batch, return_tensors=tensors) for batch in inputs.batches]

    # transformers' fast class computes in torch, and returns nothing but tensors
    sides = [side(DetrImageProcessor(), "np"), side(slow, "np"), side(DetrImageProcessorFast(), "np"), side(fast, "pt")]
    ours, theirs, ours_fast, theirs_fast = ([_as_arrays(batch) for batch in run()] for run in sides)  # also the warm-up
    largest = [
        max(require_equal_pixels(*both, step) for both in zip(*pair, strict=True))
        for pair, step in (((ours, theirs), 0.0), ((ours_fast, theirs_fast), PIXEL_STEP))
    ]
    seconds = interleaved(sides, rounds)
    count = sum(len(batch) for batch in inputs.batches)
    rows = [
        ((SLOW, SLOW), _agreement(largest[0]), (seconds[0], seconds[1])),
        ((FAST, FAST), _agreement(largest[1]), (seconds[2], seconds[3])),
        # Pillow's arithmetic against torchvision's: the results differ by design, so they are not compared
        ((SLOW, FAST), "other resizing", (seconds[0], seconds[3])),
    ]
    return [make_row("preprocess", inputs.name, *row, count) for row in rows]


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


def _seeded(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    return [Image.fromarray(synthetic_picture(seed, size)) for seed, size in enumerate(sizes)]


def _named(pictures: Sequence[Image.Image], how: str) -> str:
    if len(pictures) == 1:
        return f"the image of {pictures[0].height}x{pictures[0].width}"
    return f"{len(pictures)} images, {how}"


def _load() -> float | None:
    """How many processes wanted a CPU in the last minute, before this one did."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
