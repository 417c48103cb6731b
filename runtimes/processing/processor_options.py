"""The options of a DETR image processor, and the `preprocessor_config.json` that holds them.

Source: the constructor, `from_dict` and `to_dict` of `DetrImageProcessor` in transformers 4.57.6. Each of the two reads the
other's file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

import numpy as np

from detr_export.runtimes.documents import read_document, shown
from detr_export.runtimes.errors import CheckpointError, OptionError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.hub import settings_file
from detr_export.runtimes.processing.option_values import (
    DEVIATIONS,
    FACTORS,
    MEANS,
    as_channels,
    as_flag,
    as_number,
)
from detr_export.runtimes.processing.resizing.pillow import as_resample
from detr_export.runtimes.processing.sizes import SizeDict, as_pad_size, as_size
from detr_export.runtimes.processing.transforms import Channels

CONFIG_NAME = "preprocessor_config.json"

# Mean and standard deviation of the ImageNet training set, RGB in [0, 1]: what DETR's backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The evaluation size in the published DETR code (datasets/coco.py, the "val" transform).
DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
_DEFAULT_LONGEST_EDGE = 1333  # used when `size` is only an int, as in old configurations

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


_Self = TypeVar("_Self", bound="ProcessorOptions")


class ProcessorOptions:
    """The options of an image processor, as attributes, and the JSON file that holds them.

    - `size`: {shortest_edge, longest_edge}, {height, width} or {max_height, max_width}; an int is the shortest edge,
      and then the longest edge is 1333.
    - `resample`: the number of Pillow's filter; 2 is bilinear.
    - `image_mean`, `image_std`: one number for each channel or one for all, in rescaled units.
    - `do_convert_annotations`: the default is the value of `do_normalize`.
    - `pad_size`: {height, width} to pad to; None pads to the largest image of the batch.

    Raises OptionError for an invalid value.
    """

    model_input_names = ("pixel_values", "pixel_mask")
    _type_name = _TYPES[0]  # the name of this class in configurations

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
        self.format = as_format(format)
        self.do_resize = as_flag(do_resize, "do_resize")
        self.size = as_size(DEFAULT_SIZE if size is None else size, max_size=_DEFAULT_LONGEST_EDGE)
        self.resample = as_resample(resample)
        self.do_rescale = as_flag(do_rescale, "do_rescale")
        self.rescale_factor = as_number(rescale_factor, "rescale_factor", FACTORS)
        self.do_normalize = as_flag(do_normalize, "do_normalize")
        self.image_mean = list(IMAGENET_MEAN) if image_mean is None else as_channels(image_mean, "image_mean", MEANS)
        self.image_std = list(IMAGENET_STD) if image_std is None else as_channels(image_std, "image_std", DEVIATIONS)
        converting = as_flag(do_convert_annotations, "do_convert_annotations")
        self.do_convert_annotations = self.do_normalize if converting is None else converting
        self.do_pad = as_flag(do_pad, "do_pad")
        self.pad_size = as_pad_size(pad_size)
        self._other_keys: dict[str, Any] = {"image_processor_type": self._type_name}

    @classmethod
    def from_dict(cls: type[_Self], config: Mapping[str, Any]) -> _Self:
        """Makes a processor from the content of a `preprocessor_config.json`.

        It also reads the old names `max_size` and `pad_and_return_pixel_mask`. Keys that are not options are kept for
        `to_dict`. Raises OptionError for an invalid value and for the configuration of another processor.
        """
        config = dict(config)
        kind = config.get("image_processor_type", config.get("feature_extractor_type", _TYPES[0]))
        if kind not in _TYPES:
            name = shown(kind).strip("'")
            raise OptionError(f"the configuration is of a {name}: expected one of {', '.join(_TYPES)}")
        if "pad_and_return_pixel_mask" in config:
            config["do_pad"] = config.pop("pad_and_return_pixel_mask")
        if "max_size" in config:
            max_size = config.pop("max_size")
            if config.get("size") is not None:
                config["size"] = as_size(config["size"], max_size)
        processor = cls(**{key: config.pop(key) for key in _OPTIONS if key in config})
        processor._other_keys.update(config)
        if cls._type_name != _TYPES[0]:  # the plain class reads all types, and keeps the name for the next reader
            processor._other_keys["image_processor_type"] = cls._type_name
        return processor

    @classmethod
    def from_pretrained(
        cls: type[_Self], path: Union[str, os.PathLike], revision: Optional[str] = None, **options: Any
    ) -> _Self:
        """Reads a `preprocessor_config.json`; `path` is that file, its folder, or a hub id; `revision` is of the latter.

        `options` are arguments of the constructor, and take the place of the file's: `size={"height": 96, "width": 96}`.

        Raises CheckpointError if the file is missing, is not a JSON object, or has an invalid option, and OptionError for
        `options` that are unknown or invalid.
        """
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise OptionError(f"unknown options {', '.join(unknown)}: expected some of {', '.join(_OPTIONS)}")
        file = settings_file(path, CONFIG_NAME, revision, CheckpointError)
        try:
            config = read_document(file, CheckpointError)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"cannot read {file}: {error.strerror}; expected the image processor's settings, "
                "copy that file from the checkpoint"
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"{error}; copy that file from the checkpoint again") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} is {shown(config)}; expected an object; copy it again")
        try:
            processor = cls.from_dict(config)
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}; correct that file") from error
        return cls.from_dict({**processor.to_dict(), **options}) if options else processor

    def to_dict(self) -> dict[str, Any]:
        """Every option and every key that `from_dict` was given, as plain JSON types."""
        return {**self._other_keys, **{name: _plain(getattr(self, name)) for name in _OPTIONS}}

    def save_pretrained(self, directory: Union[str, os.PathLike]) -> Path:
        """Writes `directory/preprocessor_config.json`, makes the folder, and returns the path. Raises OutputError."""
        file = Path(directory) / CONFIG_NAME
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        return write_atomically(file, text.encode("utf-8"))

    def _pick(self, name: str, override: Any) -> Any:
        return getattr(self, name) if override is None else override

    def _flag(self, name: str, override: Any) -> bool:
        return bool(as_flag(self._pick(name, override), name))

    def _required(self, name: str, override: Any) -> Any:
        value = self._pick(name, override)
        if value is None:
            raise OptionError(f"{name} is None, but the step that needs it is on: set it, or turn the step off")
        return value


def as_format(value: str) -> str:
    """`value` as one of `FORMATS`. Raises OptionError for other values."""
    if not isinstance(value, str) or value not in FORMATS:
        raise OptionError(f"format is {shown(value)}; expected {' or '.join(FORMATS)}")
    return FORMATS[FORMATS.index(value)]  # a plain string, also for a string enumeration


def _plain(value: Any) -> Any:
    """The value in JSON's types: numpy arrays and tuples become lists, numpy numbers become Python's."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
