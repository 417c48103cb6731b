"""The golden data of an end-to-end file: images, and what `Predictor` finds in them with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.options import ExportOptions
from detr_export.loading import reference_session
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.metadata import EndToEnd, Metadata
from detr_export.runtimes.processing.end_to_end import image_batch
from detr_export.runtimes.session import Session
from detr_export.verification.end_to_end import (
    LIMITS,
    MULTIPLE,
    best_detections,
    detection_differences,
    other_processor,
    raw_outputs,
)
from detr_export.verification.golden import END_TO_END, GoldenCase
from detr_export.verification.golden.pictures import noise_picture, shapes_picture
from detr_export.verification.golden.writing import WrittenGolden, write_golden

_OUTPUTS = ("scores", "labels", "boxes")  # masks would be megabytes, and a tolerance of logits says little
_FP16 = 10.0  # how much wider the fixed limits are for an fp16 file
# Height, width, and how many images; shapes and noise by turns.
_BATCHES = ((240, 320, 1), (333, 499, 1), (320, 213, 1), (97, 61, 1), (192, 256, 2), (1, 1, 1), (480, 640, 1))


def write_image_golden(
    folder: str | Path, model_name: str, checkpoint: Checkpoint, options: ExportOptions, metadata: Metadata
) -> WrittenGolden:
    """Writes the golden data of an end-to-end file. The file itself is not read: all comes from its checkpoint.

    Args:
        folder: where they are to be.
        model_name: name of the exported file.
        checkpoint: what it was exported from.
        options: how it was exported.
        metadata: its metadata.

    Raises:
        ArtifactError: the checkpoint's outputs are not finite.
        OutputError: as in `write_golden`.
    """
    assert metadata.end_to_end is not None
    with reference_session(checkpoint, task=options.task, pixel_mask=False) as session:
        cases = list(_cases(session, metadata.end_to_end))
        tolerances = _tolerances(session, metadata.precision, metadata.end_to_end.top_k)
        return write_golden(folder, model_name, metadata.source, END_TO_END, cases, tolerances, options.overwrite)


def _batches() -> Iterator[tuple[str, list[np.ndarray]]]:
    """Names and RGB images, uint8 (height, width, 3), the same on every machine."""
    for seed, (height, width, count) in enumerate(_BATCHES):
        draw, name = (noise_picture, "noise") if seed % 2 else (shapes_picture, "shapes")
        yield f"{name}-{count}x{height}x{width}", [draw(height, width, 3, 8 * seed + index) for index in range(count)]


def _cases(session: Session, options: EndToEnd) -> Iterator[GoldenCase]:
    """One batch at a time. The model runs on each image alone."""
    runner = ImageRunner(session)
    for name, images in _batches():
        found = [best_detections(raw_outputs(runner, image), image.shape[:2], options.top_k) for image in images]
        outputs = {output: np.stack([item[output] for item in found]) for output in _OUTPUTS}
        yield GoldenCase(name, image_batch(images, options.color), outputs)


def _tolerances(session: Session, precision: str, top_k: int) -> dict[str, float]:
    """The limits of the gate, with boxes in pixels of the images.

    The floor is what the two processors of transformers differ by on these images; see `verification.end_to_end`.
    """
    ours = ImageRunner(session)
    theirs = ImageRunner(session, other_processor(ours.processor))
    wider = _FP16 if precision == "fp16" else 1.0
    limits = {"scores": LIMITS["scores"] * wider, "boxes": 0.0}
    for _, images in _batches():
        for image in images:
            size = image.shape[:2]
            resized = ours.prepare([image])["pixel_values"].shape[2:]
            raw = raw_outputs(ours, image)
            floor = detection_differences(best_detections(raw_outputs(theirs, image), size, top_k), raw, size, resized)
            scale = max(size[0] / resized[0], size[1] / resized[1])
            limits["scores"] = max(limits["scores"], MULTIPLE * floor["scores"])
            limits["boxes"] = max(limits["boxes"], scale * LIMITS["boxes"] * wider, scale * MULTIPLE * floor["boxes"])
    return limits
