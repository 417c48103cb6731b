"""Variations of training images: what is annotated stays where it is seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detr_export.training.augmentation import Augmentation

HEIGHT, WIDTH = 120, 200
SIZE = {"shortest_edge": 100, "longest_edge": 300}


def scene(generator: np.random.Generator, objects: int) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """Rectangles of one colour each on black; the colour's red is 50 + the number of the object."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((objects, HEIGHT, WIDTH), dtype=bool)
    boxes = []
    for number in range(objects):
        left, top = generator.integers(0, WIDTH - 40), generator.integers(0, HEIGHT - 30)
        width, height = generator.integers(8, 40), generator.integers(8, 30)
        pixels[top : top + height, left : left + width] = (50 + number, 0, 0)
        masks[number, top : top + height, left : left + width] = True
        boxes.append([(left + width / 2) / WIDTH, (top + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT])
    target = {
        "class_labels": np.arange(objects),
        "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "masks": masks,
    }
    return Image.fromarray(pixels), target


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_crops_keep_what_they_show(flip: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image, target = scene(generator, 1)
    found, cropped, _ = Augmentation(flip, (1.0, 1.0), crop=1.0).apply(image, target, SIZE, generator)
    assert found.size != image.size
    seen = np.asarray(found)[..., 0] == 50
    assert len(cropped["class_labels"]) == len(cropped["boxes"]) == len(cropped["masks"]) == int(seen.any())
    if seen.any():
        assert (cropped["masks"][0] == seen).all()
        rows, columns = np.nonzero(seen)
        corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / (*found.size, *found.size)
        x, y, w, h = cropped["boxes"][0]
        assert np.allclose(corners, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=1e-5)


def test_sizes_of_crops() -> None:
    """Of an image that is scaled to 50, 62.5 or 75 pixels, 48 to 75 pixels, and never more than there is."""
    generator = np.random.default_rng(0)
    image, target = scene(generator, 3)
    augmentation = Augmentation(0.0, (1.0, 1.0), crop=1.0)
    sizes = np.array([augmentation.apply(image, target, SIZE, generator)[0].size for _ in range(200)])
    assert sizes.min() >= round(0.48 / 0.75 * 120) - 1
    assert sizes[:, 0].max() > 150  # 0.75 / 0.5 of 120
    assert sizes[:, 0].max() <= 181
    assert sizes[:, 1].max() == HEIGHT


def test_half_of_the_images_are_cropped() -> None:
    generator = np.random.default_rng(0)
    image, target = scene(generator, 3)
    augmentation = Augmentation(0.0, (1.0, 1.0))
    whole = sum(augmentation.apply(image, target, SIZE, generator)[0].size == image.size for _ in range(300))
    assert 110 < whole < 190


def test_what_is_off_draws_no_numbers() -> None:
    """So recipes from before there were crops and colours still give the same images."""
    image, target = scene(np.random.default_rng(0), 2)
    augmentation = Augmentation(0.5, (0.5, 1.5), crop=0.0)
    generator, reference = np.random.default_rng(7), np.random.default_rng(7)
    _, _, size = augmentation.apply(image, target, SIZE, generator)
    reference.random()
    assert size["shortest_edge"] == round(100 * reference.uniform(0.5, 1.5))
    assert generator.random() == reference.random()


def test_colors_change_and_places_do_not() -> None:
    generator = np.random.default_rng(0)
    image, target = scene(generator, 4)
    color = Image.effect_noise(image.size, 80).convert("RGB")
    image = Image.blend(image, color, 0.5)
    found, same, _ = Augmentation(0.0, (1.0, 1.0), crop=0.0, color_jitter=0.4).apply(image, target, SIZE, generator)
    assert same is target
    assert found.size == image.size
    difference = np.asarray(found).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() > 3
    # Bright pixels stay brighter than dark ones.
    brightness = [np.asarray(picture.convert("L")).ravel() for picture in (image, found)]
    assert np.corrcoef(*brightness)[0, 1] > 0.95


def test_a_strength_of_zero_changes_no_pixel() -> None:
    image, target = scene(np.random.default_rng(0), 2)
    generator = np.random.default_rng(0)
    found, *_ = Augmentation(0.0, (1.0, 1.0), crop=0.0, color_jitter=0.0).apply(image, target, SIZE, generator)
    assert (np.asarray(found) == np.asarray(image)).all()
