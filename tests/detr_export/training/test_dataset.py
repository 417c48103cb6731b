"""Samples and batches: targets follow the image through flip, scale and padding; the order can be picked up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detr_export.data.splits import read_split
from detr_export.runtimes import DetrImageProcessor
from detr_export.runtimes.errors import AnnotationError, DetrError, ImageError
from detr_export.training.dataset import Augmentation, Batch, CocoDataset, ShuffledBatches, collate

SIZE = {"shortest_edge": 120, "longest_edge": 160}


def dataset(shapes: Path, augmentation: Augmentation | None, seed: int = 0) -> CocoDataset:
    return CocoDataset(read_split(shapes, "train", "panoptic"), DetrImageProcessor(size=SIZE), True, augmentation, seed)


def sample(data: CocoDataset, epoch: int, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    found = data[(epoch, number)]
    assert not isinstance(found, DetrError)
    return found


def around(masks: np.ndarray) -> np.ndarray:
    """Boxes around masks, (center_x, center_y, width, height) relative to the image."""
    height, width = masks.shape[1:]
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        top, bottom, left, right = (
            rows.min() / height,
            (rows.max() + 1) / height,
            columns.min() / width,
            (columns.max() + 1) / width,
        )
        boxes.append([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
    return np.array(boxes)


def test_without_augmentation_a_sample_is_what_the_processor_makes(shapes: Path) -> None:
    data = dataset(shapes, None)
    record = data.split.records[0]
    from PIL import Image

    expected = DetrImageProcessor(size=SIZE, format="coco_panoptic")(
        Image.open(record["image"]), dict(record), masks_path=data.split.masks
    )
    pixels, target = sample(data, 0, 0)
    assert np.array_equal(pixels, expected["pixel_values"][0])
    label = expected["labels"][0]
    assert np.array_equal(target["class_labels"], label["class_labels"])
    assert np.array_equal(target["masks"], label["masks"])
    # Panoptic pre-processing ends a box at the last pixel's top left corner, here it is its bottom right.
    assert np.abs(target["boxes"] - label["boxes"]).max() < 1.01 / 198


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.7, 1.3)])
def test_targets_follow_the_image(flip: float, scale: tuple[float, float], shapes: Path) -> None:
    plain = dataset(shapes, None)
    varied = dataset(shapes, Augmentation(flip, scale, crop=0.0))
    for number in range(6):
        pixels, target = sample(varied, 0, number)
        shorter = min(pixels.shape[1:])
        assert scale[0] * 120 - 8 <= shorter <= scale[1] * 120 + 1
        assert target["boxes"].dtype == np.float32
        assert target["masks"].shape[1:] == pixels.shape[1:]
        off = np.abs(around(target["masks"]) - target["boxes"])
        assert off.max() < 5 / shorter  # the nearest pixels may miss the tip of a star
        assert off.mean() < 1 / shorter
        before = sample(plain, 0, number)[1]
        if flip:
            assert np.allclose(target["boxes"][:, 0], 1 - before["boxes"][:, 0], atol=1e-6)
            assert np.allclose(target["boxes"][:, 1:], before["boxes"][:, 1:], atol=1e-6)
        else:
            assert np.array_equal(target["boxes"], before["boxes"])


def test_a_flipped_image_is_the_mirror_image(shapes: Path) -> None:
    plain = sample(dataset(shapes, None), 0, 0)[0]
    flipped = sample(dataset(shapes, Augmentation(1.0, (1.0, 1.0), crop=0.0)), 0, 0)[0]
    assert np.abs(flipped[:, :, ::-1] - plain).max() < 0.05
    assert np.abs(flipped - plain).max() > 1


def test_a_sample_depends_on_seed_epoch_and_record(shapes: Path) -> None:
    one, same, other = (dataset(shapes, Augmentation(), seed) for seed in (0, 0, 1))
    assert np.array_equal(sample(one, 3, 5)[0], sample(same, 3, 5)[0])
    shapes_of = [[sample(data, epoch, 5)[0].shape for epoch in range(4)] for data in (one, other)]
    assert len(set(shapes_of[0])) > 1
    assert shapes_of[0] != shapes_of[1]


def test_collate_pads_and_leaves_boxes_alone(shapes: Path) -> None:
    data = dataset(shapes, Augmentation(0.0, (0.5, 1.2), crop=0.0))
    samples = [sample(data, 0, number) for number in range(5)]
    batch = collate(samples)
    assert isinstance(batch, Batch)
    height, width = batch.pixel_values.shape[2:]
    assert (height, width) == tuple(max(pixels.shape[axis] for pixels, _ in samples) for axis in (1, 2))
    assert len({pixels.shape for pixels, _ in samples}) > 1
    for index, (pixels, target) in enumerate(samples):
        _, h, w = pixels.shape
        assert np.array_equal(batch.pixel_values[index, :, :h, :w], pixels)
        assert batch.pixel_mask[index].sum() == h * w == batch.pixel_mask[index, :h, :w].sum()
        assert not batch.pixel_values[index][:, batch.pixel_mask[index] == 0].any()
        assert np.array_equal(batch.targets[index]["boxes"], target["boxes"])
        assert batch.targets[index]["masks"].shape[1:] == (height, width)
        assert np.array_equal(batch.targets[index]["masks"][:, :h, :w], target["masks"])
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.pixel_values, batch.pixel_values)


def test_errors_of_the_data_are_handed_on(shapes: Path) -> None:
    data = dataset(shapes, None)
    records = list(data.split.records)
    records[1] = {**records[1], "image": shapes / "nothing.jpg"}
    records[2] = {**records[2], "file_name": "nothing.png"}
    data.split = replace(data.split, records=tuple(records))
    good, no_image, no_mask = (data[(0, index)] for index in range(3))
    assert isinstance(no_image, ImageError)
    assert isinstance(no_mask, AnnotationError)
    assert collate([good, no_image]) is no_image


def test_batches_cover_an_epoch_once_each_in_an_order_of_its_own() -> None:
    batches = ShuffledBatches(23, 5, 0, range(8))
    assert batches.steps_per_epoch == 4
    assert len(batches) == 8
    indices = list(batches)
    orders = []
    for epoch in range(2):
        seen = [number for batch in indices[epoch * 4 : epoch * 4 + 4] for of_epoch, number in batch if of_epoch == epoch]
        assert len(seen) == len(set(seen)) == 20
        orders.append(seen)
    assert orders[0] != orders[1]
    assert list(ShuffledBatches(23, 5, 0, range(3, 6))) == indices[3:6]
    assert list(ShuffledBatches(23, 5, 1, range(8))) != indices


def test_processes_share_what_one_would_have() -> None:
    alone = list(ShuffledBatches(23, 6, 0, range(3)))
    shared = [list(ShuffledBatches(23, 3, 0, range(3), rank, 2)) for rank in range(2)]
    assert [[*one, *other] for one, other in zip(*shared, strict=True)] == alone
