"""Pictures that are made ready for a model in one process and run in another: the first needs no session."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.transforms import LAST


@dataclass(frozen=True, eq=False)
class ReadyPicture:
    """A picture at the size that the model gets, before its values are scaled: a quarter of the bytes of the inputs."""

    pixels: np.ndarray  # uint8 (h, w, 3), RGB, resized already
    height: int  # of the original image, pixels
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image, pixels."""
        return self.height, self.width


@dataclass(frozen=True)
class Preparation:
    """The first half of what a `Predictor` does with a picture. `Predictor.predict` does the second half.

    It can be pickled, and needs NumPy and Pillow only.
    """

    metadata: Metadata  # of the model
    processor: DetrImageProcessor

    def make_ready(self, picture: Image.Image) -> ReadyPicture:
        """Resizes a picture as the model's processor does. A picture for an end-to-end file stays as it is.

        Args:
            picture: upright RGB.

        Raises:
            ArtifactError: an option of the processor is invalid.
            ImageError: as in `Predictor.detect`.
        """
        if self.metadata.end_to_end is not None or not self.processor.do_resize:
            return ReadyPicture(np.asarray(picture), picture.height, picture.width)
        with usable_settings():
            batch = self.processor.preprocess(
                [picture], do_rescale=False, do_normalize=False, do_pad=False, data_format=LAST, input_data_format=LAST
            )
        return ReadyPicture(batch["pixel_values"][0], picture.height, picture.width)


@contextlib.contextmanager
def usable_settings() -> Iterator[None]:
    """Blames the settings of a processor for a ValueError, which is of an option; an image raises ImageError.

    Raises:
        ArtifactError: says so.
    """
    try:
        yield
    except ValueError as error:
        raise ArtifactError(
            f"the model's image settings are not usable: {error}; correct the checkpoint's preprocessor_config.json"
        ) from error


def without_resizing(processor: DetrImageProcessor) -> DetrImageProcessor:
    """The processor for pictures that are ready."""
    other = copy.copy(processor)
    other.do_resize = False
    return other
