"""An image processor that gives torchvision's numbers in place of Pillow's. It needs numpy and Pillow only.

Source: the torchvision-based `DetrImageProcessorFast` of transformers 4.57.6, on the CPU of an x86 machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from detr_export.runtimes.errors import OptionError
from detr_export.runtimes.processing.annotations.detection import Target
from detr_export.runtimes.processing.annotations.transforms import pad_target
from detr_export.runtimes.processing.batch import Picture
from detr_export.runtimes.processing.byte_scaling import Steps
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.resizing.tensors import resize_tensor
from detr_export.runtimes.processing.transforms import FIRST, PixelScaling, mean_and_std, to_layout


@dataclass(frozen=True)
class FusedScaling(PixelScaling):
    """Rescaling and normalisation in one step: it divides mean and deviation by the factor, and leaves the image alone."""

    def apply(self, array: np.ndarray, layout: str) -> np.ndarray:
        """Scaled values in float32. A float array that is only rescaled keeps its type."""
        if self.mean is not None and self.std is not None:
            array = array.astype(np.float32)
            mean, std = self._mean_and_std(array, layout)
            return (array - mean) / std
        if self.factor is not None:
            wanted = array.dtype if array.dtype.kind == "f" else np.dtype(np.float32)
            precision = np.promote_types(wanted, np.float32).type
            return (array.astype(precision) * precision(self.factor)).astype(wanted)
        return array

    def steps(self, channels: int) -> Steps:
        """The same steps as in `apply`."""
        if self.mean is not None and self.std is not None:
            mean, std = self._mean_and_std(np.empty((channels, 1, 1), dtype=np.float32), FIRST)
            return [(np.subtract, mean.ravel()), (np.divide, std.ravel())]
        return [(np.multiply, np.full(channels, 1.0 if self.factor is None else self.factor, dtype=np.float32))]

    def _mean_and_std(self, array: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
        """Those of the unscaled image, a float32 array; shapes as in `mean_and_std`."""
        assert self.mean is not None
        assert self.std is not None
        mean, std = mean_and_std(self.mean, self.std, array, layout)
        if self.factor is None:
            return mean, std
        if self.factor == 0:
            raise OptionError("rescale_factor is 0, and the mean and deviation are divided by it; expected 1 / 255 or so")
        inverse = np.float32(1.0 / self.factor)
        return mean * inverse, std * inverse


class DetrImageProcessorFast(DetrImageProcessor):
    """`DetrImageProcessor` with the arithmetic of torchvision and PyTorch, as in transformers' class of the same name.

    Options, arguments and results are those of `DetrImageProcessor`. That class gives Pillow's numbers; this one differs:

    - It resizes uint8 images (PIL images are uint8) with 16-bit weights, and gives the same pixels as torchvision. It
      resizes float images in float32 or float64, without a detour through 8 bit (see `resizing.tensors`). It knows
      NEAREST, BILINEAR and BICUBIC only.
    - It rescales and normalises in one step in float32, bit for bit as torchvision does, float64 images too.
    - It resizes masks by PyTorch's "nearest-exact" rule, and computes padded boxes in float32. Masks that are not resized
      are uint8 for coco_detection and bool for coco_panoptic.

    Where transformers' fast class does less than its slow one, this class follows the slow one: masks beside crowd
    annotations, labels that always have their `size` after padding, channels_last output, and lists in place of a stacked
    batch.
    """

    _type_name = "DetrImageProcessorFast"
    _scaling = FusedScaling

    def _resize(self, picture: Picture, size: tuple[int, int], resample: int, layout: str) -> np.ndarray:
        image = np.asarray(picture)
        return to_layout(resize_tensor(to_layout(image, layout, FIRST), size, resample), FIRST, layout)

    def _resize_mask(self, mask: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
        return resize_tensor(mask[None], size, resample)[0]

    def _prepare(
        self,
        record: Any,
        size: tuple[int, int],
        format_: str,
        return_segmentation_masks: Optional[bool],
        masks_path: Union[str, os.PathLike, None],
        name: str,
    ) -> Target:
        target = super()._prepare(record, size, format_, return_segmentation_masks, masks_path, name)
        target["boxes"] = target["boxes"].astype(np.float32, copy=False)
        if "masks" in target:
            target["masks"] = target["masks"].astype(np.uint8 if format_ == "coco_detection" else bool)
        return target

    def _pad_target(
        self, target: Target, image_size: tuple[int, int], padded: tuple[int, int], update_bboxes: bool
    ) -> Target:
        return pad_target(target, image_size, padded, update_bboxes, ratio_type=np.float32)


def processor_from_dict(config: Mapping[str, Any]) -> DetrImageProcessor:
    """The processor that the settings were made for: the fast class if they name it, otherwise the PIL one.

    Raises:
        CheckpointError, OptionError: as `DetrImageProcessor.from_dict`.
    """
    fast = config.get("image_processor_type") == DetrImageProcessorFast.__name__
    return (DetrImageProcessorFast if fast else DetrImageProcessor).from_dict(config)
