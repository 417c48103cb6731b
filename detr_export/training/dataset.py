"""From the records of a split to batches: variations, DETR's normalisation, padding with its mask.

A sample depends on the seed, the epoch and the record alone, not on the process that makes it. So a run that was interrupted
goes on with the same batches that it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from detr_export.data.splits import CocoSplit
from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.processing.annotations.panoptic import prepare_panoptic
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.images import load_image
from detr_export.training.augmentation import Augmentation, visible_boxes

Sample = tuple[np.ndarray, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Batch:
    """Images of different sizes, padded to one size, with their mask."""

    pixel_values: Tensor  # (B, 3, H, W) float32, zero where padded
    pixel_mask: Tensor  # (B, H, W) int64, 1 = real pixel
    # For each image: class_labels (N,), boxes (N, 4) relative to the image without padding, masks (N, H, W).
    targets: list[dict[str, Tensor]]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, its images channels last."""
        targets = [{name: value.to(device) for name, value in target.items()} for target in self.targets]
        pixel_values = self.pixel_values.to(device, memory_format=torch.channels_last)
        return Batch(pixel_values, self.pixel_mask.to(device), targets)

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a copy to the GPU is fast."""
        targets = [{name: value.pin_memory() for name, value in target.items()} for target in self.targets]
        return Batch(self.pixel_values.pin_memory(), self.pixel_mask.pin_memory(), targets)


class CocoDataset(Dataset):
    """Augmented samples of a split. An index is a pair (epoch, record).

    Args:
        split: records.
        processor: sizes and normalisation.
        with_masks: whether targets have `masks`; panoptic splits only.
        augmentation: how images are varied; None leaves them as they are.
        seed: of the augmentation.
    """

    def __init__(
        self, split: CocoSplit, processor: DetrImageProcessor, with_masks: bool, augmentation: Augmentation | None, seed: int
    ) -> None:
        self.split = split
        self.processor = processor
        self.with_masks = with_masks
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: tuple[int, int]) -> Sample | DetrError:
        """Pixels (3, h, w) float32 and the targets of `Batch`, as arrays.

        An error of the data is returned, not raised: what a worker process raises would reach the caller as a traceback.
        """
        try:
            return self._sample(*index)
        except DetrError as error:
            return error

    def _sample(self, epoch: int, number: int) -> Sample:
        record = self.split.records[number]
        image = load_image(record["image"])
        target = self._target(record, (image.height, image.width))
        size = self.processor.size
        if self.augmentation is not None:
            generator = np.random.default_rng([self.seed, epoch, number])
            image, target, size = self.augmentation.apply(image, target, size, generator)
        pixels = self.processor.preprocess(image, size=size, do_pad=False)["pixel_values"][0]
        if "masks" in target:
            height, width = pixels.shape[1:]
            masks = [_resized(mask, height, width) for mask in target["masks"]]
            target["masks"] = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
        return pixels, target

    def _target(self, record: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The targets of a record; boxes are (center_x, center_y, width, height) relative to the image.

        Boxes come from the `bbox` of the annotations, which ends where the last pixel ends. The boxes that panoptic
        pre-processing draws around masks are not used: they end at the top left corner of the last pixel.
        """
        objects = record["annotations"] if "annotations" in record else record["segments_info"]
        height, width = image_size
        corners = np.array([item["bbox"] for item in objects], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes, keep = visible_boxes(corners / (width, height, width, height))  # a box may lie outside the image
        target: dict[str, np.ndarray] = {
            "class_labels": np.array([item["category_id"] for item in objects], dtype=np.int64)[keep],
            "boxes": boxes[keep],
        }
        if self.with_masks:
            target["masks"] = prepare_panoptic(record, image_size, True, self.split.masks)["masks"].astype(bool)[keep]
        return target


class ShuffledBatches(Sampler):
    """Indices of `CocoDataset`, batch by batch, in another order each epoch. Records that do not fill a batch are left out.

    Args:
        records: how many there are.
        batch_size: of one process.
        seed: of the order.
        steps: which batches to give, counted through all epochs.
        rank, processes: this process, and how many share the records.
    """

    def __init__(self, records: int, batch_size: int, seed: int, steps: range, rank: int = 0, processes: int = 1) -> None:
        self.records, self.batch_size, self.seed, self.steps = records, batch_size, seed, steps
        self.rank, self.processes = rank, processes

    @property
    def steps_per_epoch(self) -> int:
        """Batches that each process has in an epoch."""
        return self.records // (self.batch_size * self.processes)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, ordered = np.empty(0, dtype=np.int64), None
        for step in self.steps:
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != ordered:
                order, ordered = np.random.default_rng([self.seed, epoch]).permutation(self.records), epoch
            start = (position * self.processes + self.rank) * self.batch_size
            yield [(epoch, int(number)) for number in order[start : start + self.batch_size]]


def collate(samples: Sequence[Sample | DetrError]) -> Batch | DetrError:
    """Pads samples to the largest, or returns the first error among them.

    Boxes stay relative to the image without its padding: that is what a DETR predicts.
    """
    for sample in samples:
        if isinstance(sample, DetrError):
            return sample
    return _padded([sample for sample in samples if not isinstance(sample, DetrError)])


def collate_parts(parts: int, samples: Sequence[Sample | DetrError]) -> list[Batch] | DetrError:
    """The samples of a step as so many batches, whose gradients are added up, or the first error among them."""
    size = len(samples) // parts
    batches = [collate(samples[start : start + size]) for start in range(0, len(samples), size)]
    errors = [batch for batch in batches if isinstance(batch, DetrError)]
    return errors[0] if errors else [batch for batch in batches if isinstance(batch, Batch)]


def _padded(samples: Sequence[Sample]) -> Batch:
    height = max(pixels.shape[1] for pixels, _ in samples)
    width = max(pixels.shape[2] for pixels, _ in samples)
    values = np.zeros((len(samples), 3, height, width), dtype=np.float32)
    mask = np.zeros((len(samples), height, width), dtype=np.int64)
    targets = []
    for index, (pixels, target) in enumerate(samples):
        _, h, w = pixels.shape
        values[index, :, :h, :w] = pixels
        mask[index, :h, :w] = 1
        if "masks" in target:
            target = {**target, "masks": np.pad(target["masks"], ((0, 0), (0, height - h), (0, width - w)))}
        targets.append({name: torch.from_numpy(value) for name, value in target.items()})
    return Batch(torch.from_numpy(values), torch.from_numpy(mask), targets)


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
