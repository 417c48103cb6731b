"""`ImageRunner`: images through a model in batches. It prepares them, runs the model, and hands out the raw outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.described import processor_of
from detr_export.runtimes.detr_interface import check_outputs, require_detr
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import FLOAT, UINT8, Metadata
from detr_export.runtimes.processing.batch import Picture, size_of
from detr_export.runtimes.processing.end_to_end import image_batch
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.sizes import as_pad_size, as_size, output_size, padded_size
from detr_export.runtimes.processing.transforms import LAST
from detr_export.runtimes.processing.uint8_batch import uint8_batch
from detr_export.runtimes.ready import Preparation, ReadyPicture, usable_settings, without_resizing
from detr_export.runtimes.session import Choose, Session, as_declared, takes_padding

Outputs = dict[str, np.ndarray]
Sizes = list[tuple[int, int]]  # (height, width) of original images, pixels


@dataclass(frozen=True)
class RawBatch:
    """What the model returned for some of the images."""

    indices: list[int]  # which of the images
    sizes: Sizes  # their sizes
    outputs: Outputs  # by name, with one row for each of the images; float16 is widened to float32


class ImageRunner:
    """Runs a DETR on images of any sizes.

    Args:
        session: an open session of a DETR with metadata.
        processor: what prepares the images in place of the file's own.

    Attributes:
        metadata: what the file says about itself.
        processor: prepares the images.

    Raises:
        ArtifactError: the model is not a DETR, takes no RGB images, or has no metadata or invalid ones.
    """

    def __init__(self, session: Session, processor: Optional[DetrImageProcessor] = None) -> None:
        require_detr(session)
        if session.metadata is None:
            raise ArtifactError(
                f"{session.source} has no detr-export metadata (classes, image size); export it with: detr-export onnx"
            )
        axis = 1 if session.metadata.input == FLOAT else 3
        channels = next(spec.shape[axis] for spec in session.inputs if spec.name in ("pixel_values", "image"))
        if channels != 3:
            raise ArtifactError(
                f"the model takes images of {channels} channels; a Predictor feeds RGB, use the session itself"
            )
        self.metadata: Metadata = session.metadata
        self.processor = processor or processor_of(self.metadata)
        self._for_ready = without_resizing(self.processor)
        self._session = session
        self._takes_mask = takes_padding(session.inputs)

    def run(self, pictures: list[Picture], padded: bool, choose: Optional[Choose] = None) -> Iterator[RawBatch]:
        """Runs the model batch by batch.

        Args:
            pictures: RGB PIL images or uint8 arrays (height, width, 3) of any strides; or all of them `ReadyPicture`s.
            padded: whether images of different sizes may share a batch. They never do where the model takes no mask.
            choose: says whose masks are wanted, see `Session.run_chosen`; all when None.

        Raises:
            ArtifactError: an option of the processor is invalid, or it pads every image although `padded` is False; or the
                model returns other arrays than a DETR.
            ImageError, InputError, BackendError: as in `Predictor.detect`.
        """
        if not padded and self.processor.pad_size is not None:
            raise ArtifactError("the model's processor pads every image to pad_size, and its maps would cover the padding")
        for indices in self._divided(pictures, padded and self._takes_mask):
            chosen = [pictures[index] for index in indices]
            inputs = self.prepare(chosen)
            outputs = (
                self._session.run(inputs)
                if choose is None
                else self._session.run_chosen(inputs, partial(self._chosen, choose, len(chosen)))
            )
            check_outputs(self._session, outputs, len(chosen))
            sizes = [size_of(picture, LAST) for picture in chosen]
            yield RawBatch(indices, sizes, {name: _widened(value) for name, value in outputs.items()})

    @property
    def pads(self) -> bool:
        """Whether images of different sizes can share a batch."""
        return self._takes_mask and self.processor.do_pad

    def prepare(self, pictures: list[Picture]) -> Outputs:
        """The session's inputs for one batch of RGB images, which have one `model_size` if the model takes no mask."""
        processor = self.processor
        ready = [picture for picture in pictures if isinstance(picture, ReadyPicture)]
        if ready:
            pictures, processor = [picture.pixels for picture in ready], self._for_ready
        end_to_end = self.metadata.end_to_end
        if end_to_end is not None:
            if self.processor.do_resize:  # the graph makes a side of no pixels one pixel wide; here it is an error
                output_size(*size_of(pictures[0], LAST), as_size(self.processor.size))
            return image_batch(pictures, end_to_end.color)
        with usable_settings():
            if self.metadata.input == UINT8:
                return as_declared(self._session.inputs, uint8_batch(processor, pictures))
            batch = processor.preprocess(pictures, return_tensors="np", input_data_format=LAST)
        names = [spec.name for spec in self._session.inputs]
        if "pixel_mask" in names and "pixel_mask" not in batch:  # the settings say do_pad=False
            pixels = batch["pixel_values"]
            batch["pixel_mask"] = np.ones((pixels.shape[0], *pixels.shape[2:]), dtype=np.int64)
        return as_declared(self._session.inputs, batch)

    @property
    def preparation(self) -> Preparation:
        """Makes pictures ready in another process."""
        return Preparation(self.metadata, self.processor)

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which the model gets an image of (height, width) pixels, before padding to other images.

        An end-to-end file gets it as it is.

        Raises:
            ArtifactError: an option of the processor is invalid.
            ImageError: the image is too thin, or does not fit into the processor's `pad_size`.
        """
        if self.metadata.end_to_end is not None:
            return size
        processor = self.processor
        with usable_settings():
            resized = output_size(*size, as_size(processor.size)) if processor.do_resize else size
            return padded_size([resized], as_pad_size(processor.pad_size)) if processor.do_pad else resized

    def _chosen(self, choose: Choose, images: int, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        check_outputs(self._session, outputs, images)
        return choose(outputs)

    def _divided(self, pictures: list[Picture], together: bool) -> list[list[int]]:
        """Indices of the images of each batch: one batch for all, or one for each size that the model gets."""
        by_size: dict[Any, list[int]] = {}
        for index, picture in enumerate(pictures):
            by_size.setdefault(None if together else self.model_size(size_of(picture, LAST)), []).append(index)
        return list(by_size.values())


def _widened(output: np.ndarray) -> np.ndarray:
    """float16 as float32, so that post-processing does not round more than the model did."""
    return output.astype(np.float32) if output.dtype == np.float16 else output
