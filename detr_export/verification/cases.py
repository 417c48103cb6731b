"""The batches that a file is compared on: shapes and paddings that it was not traced with.

The grid holds batches of one to four, landscape, portrait, square and odd sizes, and images padded by a little, by a lot
and not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from detr_export.random_images import random_images
from detr_export.runtimes.metadata import UINT8, Metadata
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.runtimes.processing.transforms import LAST


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

    def without_padding(self) -> Case:
        """The same batch with images that fill it."""
        return replace(self, valid=((self.height, self.width),) * len(self.valid))


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
class Feeds:
    """The same images, as each side of a comparison takes them."""

    file: Mapping[str, np.ndarray]  # what the file takes
    checkpoint: Mapping[str, np.ndarray]  # what the image processor makes: `pixel_values` float32, `pixel_mask` int64
    exact: Mapping[str, np.ndarray]  # the same without the processor's rounding: `pixel_values` float64


def fitting_cases(metadata: Metadata, grid: Iterable[Case] = GRID) -> list[Case]:
    """The cases that a model takes; without a pixel mask, each becomes a batch of images without padding."""
    cases = []
    for case in grid:
        limits = {"batch": len(case.valid), "height": case.height, "width": case.width}
        ranges = ((size, *metadata.ranges.get(name, (1, None))) for name, size in limits.items())
        if all(size >= low and (high is None or size <= high) for size, low, high in ranges):
            cases.append(case if metadata.pixel_mask else case.without_padding())
    return cases


def cases_of_size(batch: int, height: int, width: int) -> list[Case]:
    """Two cases of one size: one image, repeated, and different images with different paddings.

    Only the second shows images that were mixed up in the batch.
    """
    full = Case(height, width, ((height, width),) * batch, identical=batch > 1)
    # Images are made narrower and shorter by turns; no two are alike.
    padded = tuple(
        (max(1, height - index * height // (batch + 1)), width)
        if index % 2
        else (height, max(1, width - index * width // (batch + 1)))
        for index in range(batch)
    )
    if batch == 1:
        padded = ((max(1, 4 * height // 5), max(1, 3 * width // 4)),)
    return [full, Case(height, width, padded)]


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


def make_feeds(case: Case, channels: int, metadata: Metadata, seed: int) -> Feeds:
    """The images of a case as a file takes them, as its checkpoint does, and as the float64 model does.

    Args:
        case: the batch.
        channels: of the images.
        metadata: the file's: what it takes, and its processor's settings.
        seed: of the images.
    """
    if metadata.input != UINT8:
        inputs = make_inputs(case, channels, metadata.pixel_mask, seed)
        return Feeds(inputs, inputs, {**inputs, "pixel_values": inputs["pixel_values"].astype(np.float64)})
    return image_feeds(make_images(case, seed), metadata)


def image_feeds(images: Mapping[str, np.ndarray], metadata: Metadata) -> Feeds:
    """Images as a file that takes uint8 images gets them, and what its checkpoint and the float64 model get.

    Args:
        images: `pixel_values` uint8 (B, H, W, 3) and `valid_sizes` int64 (B, 2).
        metadata: the file's: whether it takes the sizes, and its processor's settings.
    """
    given = dict(images)
    processor = processor_from_dict(metadata.processor)
    rounded = scale_and_pad(given, processor)
    exact = {**rounded, "pixel_values": np.zeros(rounded["pixel_values"].shape, dtype=np.float64)}
    for image, out in zip(_unpadded(given), exact["pixel_values"], strict=True):
        out[:, : image.shape[0], : image.shape[1]] = _scaled(image, processor)
    if not metadata.pixel_mask:
        del given["valid_sizes"], rounded["pixel_mask"], exact["pixel_mask"]
    return Feeds(given, rounded, exact)


def scale_and_pad(images: Mapping[str, np.ndarray], processor: DetrImageProcessor) -> dict[str, np.ndarray]:
    """What the processor makes of images that are resized already.

    Args:
        images: `pixel_values` uint8 (B, H, W, 3) and `valid_sizes` int64 (B, 2).
        processor: it rescales and normalises.

    Returns:
        `pixel_values` float32 (B, 3, H, W) and `pixel_mask` int64 (B, H, W).
    """
    _, height, width, _ = images["pixel_values"].shape
    prepared = processor.preprocess(
        _unpadded(images),
        do_resize=False,
        do_pad=True,
        pad_size={"height": height, "width": width},
        input_data_format=LAST,
        return_tensors="np",
    )
    # The processor gives uint8 where its settings scale nothing.
    pixels = prepared["pixel_values"].astype(np.float32, copy=False)
    return {"pixel_values": pixels, "pixel_mask": prepared["pixel_mask"]}


def _unpadded(images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Each image of a batch in its own size: uint8 (height, width, 3)."""
    return [
        image[:height, :width] for image, (height, width) in zip(images["pixel_values"], images["valid_sizes"], strict=True)
    ]


def _scaled(image: np.ndarray, processor: DetrImageProcessor) -> np.ndarray:
    """What the processor makes of a uint8 image (height, width, 3), in float64: (3, height, width)."""
    values = image.astype(np.float64)
    if processor.do_rescale:
        values = values * processor.rescale_factor
    if processor.do_normalize:
        values = (values - np.asarray(processor.image_mean)) / np.asarray(processor.image_std)
    return values.transpose(2, 0, 1)
