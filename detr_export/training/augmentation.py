"""How training images are varied: flip, scale, crop and colour, drawn anew for each image and epoch.

Source of flip, scale and crop: paper, appendix A.4, and `make_coco_transforms` of facebookresearch/detr. There the shortest
edge of an image is 800 pixels; here all sizes are shares of the processor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from detr_export.runtimes.processing.detection import center_to_corners

Target = dict[str, np.ndarray]

# A crop is taken from the image at one of these sizes, and its sides are drawn from this range: 400, 500 or 600, and 384 to
# 600 of 800 pixels.
_SIZES_BEFORE_CROP = (0.5, 0.625, 0.75)
_CROP_SIDES = (0.48, 0.75)
_HUE_SHARE = 0.1  # of the strength of `color_jitter`, in turns of the colour wheel


@dataclass(frozen=True)
class Augmentation:
    """How images are varied."""

    flip: float = 0.5  # probability of a horizontal flip
    scale: tuple[float, float] = (0.6, 1.0)  # of the processor's shortest edge; the paper takes 480 to 800 of 800 pixels
    crop: float = 0.5  # probability of a random crop before the image is scaled
    color_jitter: float = 0.0  # largest relative change of brightness, contrast and saturation; a tenth of it for the hue

    def apply(
        self, image: Image.Image, target: Target, size: Mapping[str, int], generator: np.random.Generator
    ) -> tuple[Image.Image, Target, dict[str, int]]:
        """A variation of an image.

        Args:
            image: RGB.
            target: `class_labels` (N,), `boxes` (N, 4) relative (center_x, center_y, width, height), and maybe
                `masks` (N, H, W).
            size: the processor's.
            generator: where the random numbers come from.

        Returns:
            The image, its target, and the size to scale it to.
        """
        if generator.random() < self.flip:
            image, target = ImageOps.mirror(image), _mirrored(target)
        scaled = _scaled(size, generator.uniform(*self.scale))
        # No number is drawn for what is off: so a recipe without it has the variations that it always had.
        if self.crop and generator.random() < self.crop:
            image, target = _cropped(image, target, size, generator)
        if self.color_jitter:
            image = _recolored(image, self.color_jitter, generator)
        return image, target, scaled


def visible_boxes(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is seen of boxes.

    Args:
        corners: float64 (N, 4), (x_min, y_min, x_max, y_max) relative to an image, also beyond it.

    Returns:
        float32 (N, 4), (center_x, center_y, width, height) of the parts inside of the image; and bool (N,), of which there
        is one.
    """
    corners = corners.clip(0, 1)
    sizes = corners[:, 2:] - corners[:, :2]
    boxes = np.concatenate([corners[:, :2] + sizes / 2, sizes], axis=1).astype(np.float32)
    return boxes, (sizes > 0).all(axis=1)


def _mirrored(target: Target) -> Target:
    mirrored = {**target, "boxes": (target["boxes"] * (-1, 1, 1, 1) + (1, 0, 0, 0)).astype(np.float32)}
    if "masks" in target:
        mirrored["masks"] = np.ascontiguousarray(target["masks"][:, :, ::-1])
    return mirrored


def _scaled(size: Mapping[str, int], factor: float) -> dict[str, int]:
    """The processor's size times `factor`; a longest edge that is only the limit of a shortest edge stays."""
    fixed = {"longest_edge"} if "shortest_edge" in size else set()
    return {edge: pixels if edge in fixed else max(1, round(pixels * factor)) for edge, pixels in size.items()}


def _cropped(
    image: Image.Image, target: Target, size: Mapping[str, int], generator: np.random.Generator
) -> tuple[Image.Image, Target]:
    """A part of the image. Boxes end at its edges, and objects of which nothing is left are dropped."""
    # The rectangle, in pixels of the image: it is cut without the resize before it, which would only blur the pixels.
    edge = size.get("shortest_edge") or min(size.values())
    pixels = min(image.size) / (generator.choice(_SIZES_BEFORE_CROP) * edge)  # of the image, for one of the scaled image
    sides = [
        min(side, max(1, round(generator.uniform(*_CROP_SIDES) * edge * pixels))) for side in (image.width, image.height)
    ]
    left, top = (int(generator.integers(0, whole - side + 1)) for whole, side in zip(image.size, sides, strict=True))
    width, height = sides

    # The objects, relative to the rectangle.
    whole = np.array([image.width, image.height] * 2, dtype=np.float64)
    corners = center_to_corners(target["boxes"]) * whole
    boxes, keep = visible_boxes((corners - (left, top, left, top)) / (width, height, width, height))
    cropped = {"class_labels": target["class_labels"], "boxes": boxes}
    if "masks" in target:
        cropped["masks"] = target["masks"][:, top : top + height, left : left + width]
        keep &= cropped["masks"].any(axis=(1, 2))
    return image.crop((left, top, left + width, top + height)), {name: value[keep] for name, value in cropped.items()}


def _recolored(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Other brightness, contrast, saturation and hue."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(max(0.0, generator.uniform(1 - strength, 1 + strength)))
    turn = round(generator.uniform(-1, 1) * strength * _HUE_SHARE * 256)
    hue, *rest = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(turn % 256))
    return Image.merge("HSV", (turned, *rest)).convert("RGB")
