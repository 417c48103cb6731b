"""The gate of an end-to-end engine: it must find in images what the checkpoint finds behind the processor.

The engine runs on images of the smallest, the tuned and the largest size of every profile. The truth is the checkpoint in
float64, on what the processor makes of each image. Two things may put an engine off it, and each is measured on the same
images: the arithmetic, by running the checkpoint in that of the engine's precision, and the levels of the resized image, by
running it behind transformers' other processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.described import processor_of
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import EndToEnd, Metadata
from detr_export.runtimes.processing.end_to_end import image_batch
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.transforms import LAST
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.session import Session
from detr_export.verification.end_to_end import (
    LIMITS,
    MULTIPLE,
    EndToEndParity,
    best_detections,
    checked_detections,
    detection_differences,
    drawn_images,
    other_processor,
)
from detr_export.verification.reference import Reference
from detr_export.verification.tolerances import tolerance_of


def compare_end_to_end_engine(
    candidate: Session,
    metadata: Metadata,
    profiles: Sequence[EngineProfile],
    reference: Reference,
    progress: Progress = SILENT,
) -> EndToEndParity:
    """Runs an end-to-end engine in the corners of its profiles, and compares it with its checkpoint.

    Args:
        candidate: the engine.
        metadata: the engine's.
        profiles: what it was built for.
        reference: the checkpoint.
        progress: told of each size.

    Raises:
        ArtifactError: the engine is int8, and nothing in PyTorch computes as it does.
        VerificationError: the outputs are not sorted, or not of the right shape.
    """
    end_to_end = metadata.end_to_end
    assert end_to_end is not None
    multiple = require_comparable(metadata)
    processor = processor_of(metadata)
    sizes = list(dict.fromkeys(size for profile in profiles for size in (profile.minimum, profile.optimum, profile.maximum)))
    worst: dict[str, tuple[float, str]] = {}
    by_arithmetic: dict[str, float] = {}
    by_levels: dict[str, float] = {}
    images = 0
    for seed, (batch, height, width) in enumerate(sizes):
        name = f"{batch}x{height}x{width}"
        progress.stage(f"verifying {seed + 1}/{len(sizes)} {name}")
        pictures = list(drawn_images(batch, height, width, seed))
        outputs = candidate.run(image_batch(pictures, end_to_end.color))
        for number, picture in enumerate(pictures):
            found = checked_detections({key: value[number:][:1] for key, value in outputs.items()}, end_to_end, name)
            differences, arithmetic, levels = _measured(found, picture, processor, end_to_end, reference, metadata.precision)
            for output, value in differences.items():
                worst[output] = max(worst.get(output, (0.0, name)), (value, name))
            for floors, values in ((by_arithmetic, arithmetic), (by_levels, levels)):
                floors.update({output: max(value, floors.get(output, 0.0)) for output, value in values.items()})
            images += 1
    return EndToEndParity(
        {output: value for output, (value, _) in worst.items()},
        {output: by_arithmetic[output] + by_levels[output] for output in worst},
        {output: max(LIMITS[output], MULTIPLE * by_levels[output]) + multiple * by_arithmetic[output] for output in worst},
        images,
        {output: name for output, (_, name) in worst.items()},
        "the float64 model",
    )


def require_comparable(metadata: Metadata) -> float:
    """Refuses an end-to-end engine that cannot be compared.

    Returns:
        How many noise floors of its arithmetic it may be off.

    Raises:
        ArtifactError: it is int8.
    """
    multiple = tolerance_of(metadata.precision).multiple
    if multiple is None:
        raise ArtifactError(
            f"nothing in PyTorch computes as an end-to-end engine in {metadata.precision} does, so it is not compared; "
            "add --no-verify, and measure its accuracy with detr-bench"
        )
    return multiple


def _measured(
    found: Mapping[str, np.ndarray],
    picture: np.ndarray,
    processor: DetrImageProcessor,
    options: EndToEnd,
    reference: Reference,
    precision: str,
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """How far detections in one image are off, and how far the arithmetic and the levels of the pixels put one off."""
    size = picture.shape[:2]
    pixels, others = (_prepared(item, picture) for item in (processor, other_processor(processor)))
    raw = _first(reference.exact(pixels))

    def off(detections: Mapping[str, np.ndarray]) -> dict[str, float]:
        return detection_differences(detections, raw, size, pixels.shape[2:])

    arithmetic = [off(best_detections(_first(item), size, options.top_k)) for item in reference.rounded(precision, pixels)]
    return (
        off(found),
        {output: max(item[output] for item in arithmetic) for output in arithmetic[0]},
        off(best_detections(_first(reference.exact(others)), size, options.top_k)),
    )


def _prepared(processor: DetrImageProcessor, picture: np.ndarray) -> np.ndarray:
    """`pixel_values` float32 (1, 3, h, w)."""
    prepared = processor.preprocess([picture], return_tensors="np", input_data_format=LAST)
    return prepared["pixel_values"].astype(np.float32, copy=False)


def _first(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[0].astype(np.float32) for name, value in outputs.items()}
