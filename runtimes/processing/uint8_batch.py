"""Batches of uint8 images, for models that scale their images themselves."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.sizes import as_pad_size, padded_size
from detr_export.runtimes.processing.transforms import LAST


def uint8_batch(
    processor: DetrImageProcessor, pictures: list[Any], size: Optional[dict[str, int]] = None
) -> dict[str, np.ndarray]:
    """Resizes and pads images as the processor does. The model does the rest.

    Args:
        processor: it gives the size, the resampling filter and `pad_size`.
        pictures: RGB images: PIL images or uint8 arrays (h, w, 3).
        size: used in place of the processor's.

    Returns:
        `pixel_values` uint8 (B, H, W, 3), with each image in the top left and zeros elsewhere, and `valid_sizes` int64
        (B, 2), the (height, width) of each. That is a quarter of the bytes of float32 images, and no mask is needed.

    Raises:
        ImageError: an image cannot be processed.
        OptionError: the processor's options are not usable.
    """
    batch = processor.preprocess(
        pictures,
        size=size,
        do_rescale=False,
        do_normalize=False,
        do_pad=False,
        data_format=LAST,
        input_data_format=LAST,
    )
    images = batch["pixel_values"]
    sizes = [image.shape[:2] for image in images]
    height, width = padded_size(sizes, as_pad_size(processor.pad_size) if processor.do_pad else None)
    values = np.zeros((len(images), height, width, 3), dtype=np.uint8)
    for target, image, (valid_height, valid_width) in zip(values, images, sizes):
        target[:valid_height, :valid_width] = image
    return {"pixel_values": values, "valid_sizes": np.array(sizes, dtype=np.int64)}
