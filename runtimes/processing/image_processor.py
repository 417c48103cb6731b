"""The DETR image processor: images in, `pixel_values` and `pixel_mask` out, with numpy and Pillow only.

Source: the PIL-based `DetrImageProcessor` of transformers 4.57.6. Both outputs equal its outputs bit for bit, and each
reads the other's `preprocessor_config.json`. (The torchvision-based `DetrImageProcessorFast` resizes differently.)
What differs, on purpose:

- A PIL image is known to be channels-last. Upstream infers that from the shape and misreads images 1 or 3 pixels high.
- Images of a batch must share one channel layout, and must be finite; upstream computes on.
- `return_tensors` is None or "np".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from runtimes.errors import AnnotationError, CheckpointError, OutputError
from runtimes.processing.image_batch import Picture, collect, scale_and_pad, size_of, stack
from runtimes.processing.image_sizes import SizeDict, as_pad_size, as_size, output_size, padded_size
from runtimes.processing.image_transforms import (
    FIRST,
    Channels,
    PixelScaling,
    as_layout,
    as_resample,
    height_width,
    normalize,
    pad,
    pixel_masks,
    rescale,
    resize,
    to_layout,
)
from runtimes.processing.post_processing import TargetSizes, post_process_object_detection

CONFIG_NAME = "preprocessor_config.json"

# Mean and standard deviation of the ImageNet training set, RGB in [0, 1]: what DETR's backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The evaluation size in the published DETR code (datasets/coco.py, the "val" transform).
DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
_DEFAULT_LONGEST_EDGE = 1333  # beside a `size` that is only an int, as in old configurations

FORMATS = ("coco_detection", "coco_panoptic")
_TYPES = ("DetrImageProcessor", "DetrImageProcessorFast", "DetrFeatureExtractor")
_OPTIONS = (
    "format",
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_annotations",
    "do_pad",
    "pad_size",
)


class BatchFeature(dict):
    """A dict whose keys are attributes as well: `out["pixel_values"]` is `out.pixel_values`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r}: this batch has {', '.join(self) or 'nothing'}") from None


class DetrImageProcessor:
    """Resize, rescale, normalise and pad images for DETR. Options are attributes; `preprocess` can override each.

    - `size`: {shortest_edge, longest_edge}, {height, width} or {max_height, max_width}; an int is the shortest edge,
      with 1333 for the longest.
    - `resample`: Pillow's filter, 2 is bilinear.
    - `image_mean`, `image_std`: one number for each channel or one for all, in rescaled units.
    - `do_convert_annotations`: defaults to `do_normalize`.
    - `pad_size`: {height, width} to pad to; None pads to the largest image of the batch.

    Raises ValueError for an option that is not one of these.
    """

    def __init__(
        self,
        format: str = "coco_detection",
        do_resize: bool = True,
        size: Union[SizeDict, int, None] = None,
        resample: int = 2,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Optional[Channels] = None,
        image_std: Optional[Channels] = None,
        do_convert_annotations: Optional[bool] = None,
        do_pad: bool = True,
        pad_size: Optional[SizeDict] = None,
    ) -> None:
        self.format = _as_format(format)
        self.do_resize = do_resize
        self.size = as_size(DEFAULT_SIZE if size is None else size, max_size=_DEFAULT_LONGEST_EDGE)
        self.resample = as_resample(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(IMAGENET_MEAN) if image_mean is None else image_mean
        self.image_std = list(IMAGENET_STD) if image_std is None else image_std
        self.do_convert_annotations = do_normalize if do_convert_annotations is None else do_convert_annotations
        self.do_pad = do_pad
        self.pad_size = as_pad_size(pad_size)
        self._other_keys: dict[str, Any] = {"image_processor_type": "DetrImageProcessor"}

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DetrImageProcessor:
        """Build from the content of a `preprocessor_config.json`.

        The old names `max_size` and `pad_and_return_pixel_mask` are understood; keys that are no option are kept for
        `to_dict`. Raises ValueError for an option with a bad value and for the configuration of another processor.
        """
        config = dict(config)
        kind = config.get("image_processor_type", config.get("feature_extractor_type", _TYPES[0]))
        if kind not in _TYPES:
            raise ValueError(f"the configuration is of a {kind}: expected one of {', '.join(_TYPES)}")
        if "pad_and_return_pixel_mask" in config:
            config["do_pad"] = config.pop("pad_and_return_pixel_mask")
        if "max_size" in config:
            max_size = config.pop("max_size")
            if config.get("size") is not None:
                config["size"] = as_size(config["size"], max_size)
        processor = cls(**{key: config.pop(key) for key in _OPTIONS if key in config})
        processor._other_keys.update(config)
        return processor

    @classmethod
    def from_pretrained(cls, path: Union[str, os.PathLike]) -> DetrImageProcessor:
        """Read `preprocessor_config.json`, named itself or by its folder.

        Raises CheckpointError when it is missing, is not a JSON object, or holds a bad option.
        """
        file = Path(path)
        if file.is_dir():
            file = file / CONFIG_NAME
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"cannot read {file}: {error.strerror}; expected the image processor's settings, "
                "copy that file from the checkpoint"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON ({error}); copy that file from the checkpoint again") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} holds a {type(config).__name__}: expected a JSON object; copy it again")
        try:
            return cls.from_dict(config)
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}; correct that file") from error

    def to_dict(self) -> dict[str, Any]:
        """Every option and every key that `from_dict` was given, as plain JSON types."""
        return {**self._other_keys, **{name: _plain(getattr(self, name)) for name in _OPTIONS}}

    def save_pretrained(self, directory: Union[str, os.PathLike]) -> Path:
        """Write `directory/preprocessor_config.json`, making the folder. Returns the file; OutputError on failure."""
        file = Path(directory) / CONFIG_NAME
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}; name a folder that can be written") from error
        return file

    # ---- processing -------------------------------------------------------------------------------------------------

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
        """Make a batch. None for an option takes the processor's own.

        `images` is a PIL image, an array (3-D, or 4-D for a batch), or a list of them. PIL images must be RGB and are
        not turned by EXIF: `load_image` does both. An array's channels are at the end that has 1 or 3 entries (the
        first end if both do) unless `input_data_format` says. Values are 0..255, or, with `do_rescale=False`, [0, 1].

        Returns, as lists of arrays, or stacked with `return_tensors="np"`:

        - `pixel_values`: (B, C, H, W), or (B, H, W, C) with `data_format="channels_last"`; float32 when rescaled or
          normalised. Each image is in the top left, zeros elsewhere.
        - `pixel_mask`: int64 (B, H, W), 1 = real pixel. Not there with `do_pad=False`.

        Raises ImageError for images that cannot be processed, AnnotationError for annotations, ValueError for options.
        """
        as_numpy = _wants_numpy(return_tensors)
        data_format = as_layout(data_format, "data_format")
        resample = as_resample(self._pick("resample", resample))
        size = as_size(self._pick("size", size))
        pad_size = as_pad_size(self._pick("pad_size", pad_size))
        normalizing = self._pick("do_normalize", do_normalize)
        scaling = PixelScaling(
            factor=self._required("rescale_factor", rescale_factor) if self._pick("do_rescale", do_rescale) else None,
            mean=self._required("image_mean", image_mean) if normalizing else None,
            std=self._required("image_std", image_std) if normalizing else None,
        )
        _refuse(annotations)

        pictures, layout = collect(images, input_data_format)
        if self._pick("do_resize", do_resize):
            targets = [output_size(*size_of(picture, layout), size) for picture in pictures]
            arrays = [resize(p, target, resample, layout) for p, target in zip(pictures, targets)]
        else:
            arrays = [np.array(picture) for picture in pictures]  # copies: the caller owns the result
        sizes = [height_width(array, layout) for array in arrays]

        padded = padded_size(sizes, pad_size) if self._pick("do_pad", do_pad) else None
        values = scale_and_pad(arrays, layout, data_format or layout, scaling, padded)
        batch = BatchFeature(pixel_values=stack(values) if as_numpy else list(values))
        if padded is not None:
            masks = pixel_masks(sizes, padded)
            batch["pixel_mask"] = masks if as_numpy else list(masks)
        return batch

    __call__ = preprocess

    def resize(
        self,
        image: Picture,
        size: Union[SizeDict, int],
        resample: int = 2,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
    ) -> np.ndarray:
        """One image resized by Pillow: uint8, or float32 in [0, 1] for a fractional input. Layout kept by default."""
        (picture,), layout = collect([image], input_data_format)
        target = output_size(*size_of(picture, layout), as_size(size))
        resized = resize(picture, target, as_resample(resample), layout)
        return to_layout(resized, layout, as_layout(data_format, "data_format"))

    def rescale(
        self,
        image: Picture,
        rescale_factor: float,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
    ) -> np.ndarray:
        """One image multiplied by `rescale_factor`: float32. Layout kept by default."""
        (picture,), layout = collect([image], input_data_format)
        return to_layout(rescale(np.asarray(picture), rescale_factor), layout, as_layout(data_format, "data_format"))

    def normalize(
        self,
        image: Picture,
        mean: Channels,
        std: Channels,
        data_format: Optional[str] = None,
        input_data_format: Optional[str] = None,
    ) -> np.ndarray:
        """`(image - mean) / std` for each channel: float32, or the float type of the image. Layout kept by default."""
        (picture,), layout = collect([image], input_data_format)
        result = normalize(np.asarray(picture), mean, std, layout)
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
        pad_size: Optional[SizeDict] = None,
    ) -> BatchFeature:
        """Pad images at the bottom and right to `pad_size`, or to the largest. Returns what `preprocess` does.

        `constant_values` is a number, or as for `np.pad` pairs for height and width. Layout and dtype are kept by
        default.
        """
        _refuse(annotations)
        as_numpy = _wants_numpy(return_tensors)
        target = as_layout(data_format, "data_format")
        pictures, layout = collect(images, input_data_format)
        sizes = [size_of(picture, layout) for picture in pictures]
        padded = padded_size(sizes, as_pad_size(self.pad_size if pad_size is None else pad_size))
        values = [to_layout(pad(np.asarray(p), padded, layout, constant_values), layout, target) for p in pictures]
        batch = BatchFeature(pixel_values=stack(values) if as_numpy else values)
        if return_pixel_mask:
            masks = pixel_masks(sizes, padded)
            batch["pixel_mask"] = masks if as_numpy else list(masks)
        return batch

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Optional[TargetSizes] = None
    ) -> list[dict[str, np.ndarray]]:
        """See `runtimes.processing.post_processing.post_process_object_detection`."""
        return post_process_object_detection(outputs, threshold, target_sizes)

    def _pick(self, name: str, override: Any) -> Any:
        return getattr(self, name) if override is None else override

    def _required(self, name: str, override: Any) -> Any:
        value = self._pick(name, override)
        if value is None:
            raise ValueError(f"{name} is None, but the step that needs it is on: set it, or turn the step off")
        return value


def _as_format(value: str) -> str:
    if value not in FORMATS:
        raise ValueError(f"format={value!r}: expected {' or '.join(FORMATS)}")
    return FORMATS[FORMATS.index(value)]  # a plain string, also for a string enumeration


def _wants_numpy(return_tensors: Optional[str]) -> bool:
    if return_tensors not in (None, "np"):
        raise ValueError(
            f"return_tensors={return_tensors!r}: expected None or 'np'; convert the arrays, e.g. with torch.from_numpy"
        )
    return return_tensors is not None


def _refuse(annotations: Any) -> None:
    if annotations is not None:
        raise AnnotationError("annotations cannot be processed yet: expected images only; leave annotations out")


def _plain(value: Any) -> Any:
    """As JSON has it: numpy arrays and tuples become lists, numpy numbers Python's."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
