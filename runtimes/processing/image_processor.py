"""The DETR image processor: it turns images into `pixel_values` and `pixel_mask`, with numpy and Pillow only.

Source: the PIL-based `DetrImageProcessor` of transformers 4.57.6. Images, masks and labels equal its outputs bit for bit,
and each of the two reads the other's `preprocessor_config.json`. (`image_processor_fast` follows the torchvision-based
class.) What differs, on purpose:

- A PIL image is known to be channels-last. Upstream infers that from the shape and misreads images 1 or 3 pixels high.
- Images of a batch must share one channel layout, and must be finite. Upstream does not check that.
- Malformed annotations are refused (see `annotations.detection` and `annotations.panoptic`). An image with no annotations
  may ask for masks and gets an empty array; upstream fails there. No step changes the annotations that it is given.
- `return_tensors` is None, "np" or "pt". With None the images of a batch are NumPy arrays, also if tensors were given.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Optional, Union

import numpy as np

from detr_export.runtimes.errors import AnnotationError, ImageError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.processing.annotations.detection import Target, checks, prepare_detection
from detr_export.runtimes.processing.annotations.panoptic import prepare_panoptic
from detr_export.runtimes.processing.annotations.transforms import (
    normalize_target,
    pad_target,
    resize_mask_with_pillow,
    resize_target,
)
from detr_export.runtimes.processing.batch import Picture, Resized, as_array, collect, scale_and_pad, size_of, stack
from detr_export.runtimes.processing.batch_feature import TORCH, BatchFeature, as_kind
from detr_export.runtimes.processing.option_values import DEVIATIONS, FACTORS, MEANS, as_channels, as_number
from detr_export.runtimes.processing.post_processor import PostProcessor
from detr_export.runtimes.processing.processor_options import CONFIG_NAME, DEFAULT_SIZE, FORMATS, ProcessorOptions, as_format
from detr_export.runtimes.processing.resizing.pillow import as_resample, resize
from detr_export.runtimes.processing.sizes import SizeDict, as_pad_size, as_size, output_size, padded_size
from detr_export.runtimes.processing.torch_tensors import is_tensor, to_array
from detr_export.runtimes.processing.transforms import (
    FIRST,
    Channels,
    PixelScaling,
    as_layout,
    pad,
    pixel_masks,
    to_layout,
)

__all__ = ["CONFIG_NAME", "DEFAULT_SIZE", "FORMATS", "BatchFeature", "DetrFeatureExtractor", "DetrImageProcessor"]


class DetrImageProcessor(ProcessorOptions, PostProcessor):
    """Resizes, rescales, normalises and pads images and their annotations for DETR, as transformers' class of the same name.

    It gives the numbers of Pillow, which that class uses: resizing has 22-bit weights and rounds to 8 bit after each axis.
    Rescaling is in float64, normalisation in float32. The options are attributes, and `preprocess` can override each.
    """

    _scaling = PixelScaling

    def preprocess(
        self,
        images: Any,
        annotations: Any = None,
        return_segmentation_masks: Optional[bool] = None,
        masks_path: Union[str, os.PathLike, None] = None,
        do_resize: Optional[bool] = None,
        size: Union[SizeDict, int, None] = None,
        resample: Optional[int] = None,
        do_rescale: Optional[bool] = None,
        rescale_factor: Optional[float] = None,
        do_normalize: Optional[bool] = None,
        do_convert_annotations: Optional[bool] = None,
        image_mean: Optional[Channels] = None,
        image_std: Optional[Channels] = None,
        do_pad: Optional[bool] = None,
        format: Optional[str] = None,
        return_tensors: Optional[str] = None,
        data_format: Optional[str] = FIRST,
        input_data_format: Optional[str] = None,
        pad_size: Optional[SizeDict] = None,
    ) -> BatchFeature:
        """Makes a batch. Where an option is None, the processor's own value counts.

        `images` is a PIL image, an array or a tensor (3-D, or 4-D for a batch), or a list of them. PIL images must be RGB
        and are not turned by EXIF: `load_image` makes them so. The channels of an array are its first or its last axis, the
        one with 1 or 3 entries (the first if both have); `input_data_format` can say which. Values are 0..255, or [0, 1]
        with `do_rescale=False`.

        `annotations` is one record for each image (for a single image the record itself) in the COCO format `format`:
        ``{"image_id", "annotations"}`` or ``{"image_id", "file_name", "segments_info"}``, see `prepare_detection` and
        `prepare_panoptic`. `masks_path` is the folder of the panoptic PNGs. `return_segmentation_masks` defaults to False
        for coco_detection and to True for coco_panoptic.

        Returns lists of arrays, stacked arrays with `return_tensors="np"`, or PyTorch's tensors with "pt":

        - `pixel_values`: (B, C, H, W), or (B, H, W, C) with `data_format="channels_last"`; float32 when rescaled or
          normalised. Each image is in the top left corner, and the rest is zero.
        - `pixel_mask`: int64 (B, H, W), 1 = real pixel. It is missing with `do_pad=False`.
        - `labels`: a list with one dict for each image: the arrays of `prepare_annotation`, transformed like the image.
          `boxes` are (center_x, center_y, width, height) relative to the padded image, or, with
          `do_convert_annotations=False`, (x_min, y_min, x_max, y_max) in its pixels. `size` is the (height, width) that
          the model gets, a tuple if `return_tensors` is None; for coco_detection it is missing if the image is neither
          resized nor padded. `labels` is missing without `annotations`.

        Raises ImageError for images that cannot be processed, AnnotationError for bad annotations, OptionError for bad
        options, and BackendError if polygons must become masks without pycocotools, or tensors are made without PyTorch.
        """
        # The options, checked
        kind = as_kind(return_tensors)
        as_numpy = kind is not None
        data_format = as_layout(data_format, "data_format")
        resample = as_resample(self._pick("resample", resample))
        size = as_size(self._pick("size", size))
        pad_size = as_pad_size(self._pick("pad_size", pad_size))
        format_ = as_format(self._pick("format", format))
        normalizing = self._flag("do_normalize", do_normalize)
        converting = self._flag("do_convert_annotations", do_convert_annotations)
        factor = self._required("rescale_factor", rescale_factor) if self._flag("do_rescale", do_rescale) else None
        mean = self._required("image_mean", image_mean) if normalizing else None
        std = self._required("image_std", image_std) if normalizing else None
        scaling = self._scaling(
            factor=as_number(factor, "rescale_factor", FACTORS),
            mean=as_channels(mean, "image_mean", MEANS),
            std=as_channels(std, "image_std", DEVIATIONS),
        )

        # Images and annotations, checked
        pictures, layout = collect(images, input_data_format)
        sizes = [size_of(picture, layout) for picture in pictures]
        targets = [
            self._prepare(record, image_size, format_, return_segmentation_masks, masks_path, f"annotation {index}")
            for index, (record, image_size) in enumerate(zip(_one_each(annotations, len(pictures)), sizes))
        ]

        # Resizing, image by image
        if self._flag("do_resize", do_resize):
            wanted = [output_size(*image_size, size) for image_size in sizes]
            resized: list[Resized] = [self._resize(p, target, resample, layout) for p, target in zip(pictures, wanted)]
            targets = [self.resize_annotation(t, old, new) for t, old, new in zip(targets, sizes, wanted)]
            sizes = wanted
        else:
            resized = list(pictures)
        if converting:
            targets = [self.normalize_annotation(target, image_size) for target, image_size in zip(targets, sizes)]

        # Scaling and padding, which make the batch
        require_at_most("batch_pixels", sum(h * w for h, w in sizes), "the number of pixels of a batch", ImageError)
        padded = padded_size(sizes, pad_size) if self._flag("do_pad", do_pad) else None
        values = scale_and_pad(resized, layout, data_format or layout, scaling, padded)
        batch = BatchFeature(pixel_values=stack(values) if as_numpy else list(values))
        if padded is not None:
            masks = pixel_masks(sizes, padded)
            batch["pixel_mask"] = masks if as_numpy else list(masks)
            targets = [self._pad_target(t, image_size, padded, converting) for t, image_size in zip(targets, sizes)]
        if annotations is not None:
            batch["labels"] = [_label(target, as_numpy) for target in targets]
        return batch.with_tensors() if kind == TORCH else batch

    __call__ = preprocess

    def resize(
        self,
        image: Picture,
        size: Union[SizeDict, int],
        resample: int = 2,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
    ) -> np.ndarray:
        """Resizes one image. Returns uint8, or float32 in [0, 1] for fractions; the layout stays unless you give one."""
        (picture,), layout = collect([image], input_data_format)
        target = output_size(*size_of(picture, layout), as_size(size))
        resized = as_array(self._resize(picture, target, as_resample(resample), layout))
        return to_layout(resized, layout, as_layout(data_format, "data_format"))

    def rescale(
        self,
        image: Picture,
        rescale_factor: float,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
    ) -> np.ndarray:
        """Multiplies one image by `rescale_factor`. Returns float32; the layout stays unless you give one."""
        (picture,), layout = collect([image], input_data_format)
        rescaled = self._scaling(as_number(rescale_factor, "rescale_factor", FACTORS), None, None).apply(
            np.asarray(picture), layout
        )
        return to_layout(rescaled, layout, as_layout(data_format, "data_format"))

    def normalize(
        self,
        image: Picture,
        mean: Channels,
        std: Channels,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
    ) -> np.ndarray:
        """`(image - mean) / std` for each channel of one image.

        Returns float32, or the float type of the image; the layout stays unless you give one.
        """
        (picture,), layout = collect([image], input_data_format)
        mean, std = as_channels(mean, "image_mean", MEANS), as_channels(std, "image_std", DEVIATIONS)
        result = self._scaling(None, mean, std).apply(np.asarray(picture), layout)
        return to_layout(result, layout, as_layout(data_format, "data_format"))

    def pad(
        self,
        images: Sequence[Picture],
        annotations: Any = None,
        constant_values: Any = 0,
        return_pixel_mask: bool = True,
        return_tensors: Optional[str] = None,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
        update_bboxes: bool = True,
        pad_size: Optional[SizeDict] = None,
    ) -> BatchFeature:
        """Pads images at the bottom and right to `pad_size`, or to the largest image. Returns a batch as `preprocess` does.

        `constant_values` is a number, or pairs for height and width as in `np.pad`. The dtype stays, and the layout too
        unless you give one. `annotations` are prepared annotations, one for each image. Their `boxes` must be relative to
        the image, and become relative to the padded image; `update_bboxes=False` leaves them alone.
        """
        kind = as_kind(return_tensors)
        as_numpy = kind is not None
        layout_wanted = as_layout(data_format, "data_format")
        pictures, layout = collect(images, input_data_format)
        sizes = [size_of(picture, layout) for picture in pictures]
        targets = [
            {name: to_array(value) if is_tensor(value) else value for name, value in record.items()}
            for index, target in enumerate(_one_each(annotations, len(pictures)))
            for record in [checks.record(target, f"annotation {index}")]
        ]
        padded = padded_size(sizes, as_pad_size(self._pick("pad_size", pad_size)))
        values = [to_layout(pad(np.asarray(p), padded, layout, constant_values), layout, layout_wanted) for p in pictures]
        batch = BatchFeature(pixel_values=stack(values) if as_numpy else values)
        if return_pixel_mask:
            masks = pixel_masks(sizes, padded)
            batch["pixel_mask"] = masks if as_numpy else list(masks)
        if annotations is not None:
            batch["labels"] = [
                _label(self._pad_target(target, image_size, padded, update_bboxes), as_numpy)
                for target, image_size in zip(targets, sizes)
            ]
        return batch.with_tensors() if kind == TORCH else batch

    # ---- annotations ------------------------------------------------------------------------------------------------

    def prepare_annotation(
        self,
        image: Picture,
        target: Mapping[str, Any],
        format: Optional[str] = None,
        return_segmentation_masks: Optional[bool] = None,
        masks_path: Union[str, os.PathLike, None] = None,
        input_data_format: Optional[str] = None,
    ) -> Target:
        """The first step for one record: arrays, boxes as corners. See `prepare_detection` and `prepare_panoptic`."""
        (picture,), layout = collect([image], input_data_format)
        format_ = as_format(self._pick("format", format))
        size = size_of(picture, layout)
        return self._prepare(target, size, format_, return_segmentation_masks, masks_path, "the annotation")

    def resize_annotation(
        self, annotation: Target, orig_size: Sequence[int], size: Sequence[int], resample: int = 0
    ) -> Target:
        """Changes a prepared annotation when its image is resized from `orig_size` to `size`, both (height, width).

        It scales `boxes` and `area`, resizes `masks` with Pillow's filter `resample` (by default the nearest pixel) to
        bool, and sets `size`.
        """
        return resize_target(annotation, orig_size, size, partial(self._resize_mask, resample=as_resample(resample)))

    def normalize_annotation(self, annotation: Target, image_size: Sequence[int]) -> Target:
        """Turns `boxes` from (x_min, y_min, x_max, y_max) in pixels into (center_x, center_y, width, height) relative to
        `image_size`, (height, width)."""
        return normalize_target(annotation, image_size)

    # ---- what subclasses replace ------------------------------------------------------------------------------------

    def _resize(self, picture: Picture, size: tuple[int, int], resample: int, layout: str) -> Resized:
        return resize(picture, size, resample, layout)

    def _resize_mask(self, mask: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
        return resize_mask_with_pillow(mask, size, resample)

    def _prepare(
        self,
        record: Any,
        size: tuple[int, int],
        format_: str,
        return_segmentation_masks: Optional[bool],
        masks_path: Union[str, os.PathLike, None],
        name: str,
    ) -> Target:
        if format_ == "coco_detection":
            return prepare_detection(record, size, bool(return_segmentation_masks), name)
        return prepare_panoptic(record, size, return_segmentation_masks is not False, masks_path, name)

    def _pad_target(
        self, target: Target, image_size: tuple[int, int], padded: tuple[int, int], update_bboxes: bool
    ) -> Target:
        return pad_target(target, image_size, padded, update_bboxes)


class DetrFeatureExtractor(DetrImageProcessor):
    """The old name of `DetrImageProcessor`. The class is the same and gives a FutureWarning, as in transformers."""

    _type_name = "DetrFeatureExtractor"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("DetrFeatureExtractor is deprecated; use DetrImageProcessor", FutureWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


def _one_each(annotations: Any, images: int) -> Sequence[Any]:
    """The annotations as a list, one for each image, or an empty list for None."""
    if annotations is None:
        return []
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if not isinstance(annotations, (list, tuple)):
        raise AnnotationError(
            f"annotations is a {type(annotations).__name__}: expected a list with one dict for each image, or one dict"
        )
    if len(annotations) != images:
        raise AnnotationError(f"{len(annotations)} annotations for {images} images: expected one dict for each image")
    return annotations


def _label(target: Mapping[str, Any], as_numpy: bool) -> BatchFeature:
    label = BatchFeature(target)
    if as_numpy and "size" in label:
        label["size"] = np.asarray(label["size"], dtype=np.int64)
    return label
