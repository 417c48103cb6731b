"""`Predictor`: one object from image to result, whichever backend runs the model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union, overload

import numpy as np

from runtimes.errors import ArtifactError, BackendError, InputError
from runtimes.files import user_path
from runtimes.processing.image_processor import DetrImageProcessor
from runtimes.processing.images import ImageSource, load_image
from runtimes.results import Detections
from runtimes.session import DETR_INPUTS, DETR_OUTPUTS, Session

ImageList = Union["list[ImageSource]", "tuple[ImageSource, ...]"]

_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_CHECKPOINT_SUFFIXES = (".pth", ".pt")


def open_session(path: str | Path, device: str = "cpu", threads: Optional[int] = None) -> Session:
    """Opens a file or checkpoint with the backend that it is for.

    Args:
        path: an `.onnx` file, or a checkpoint: a directory, a `.pth` file, a hub id.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of one run on the CPU; the backend's default when None.

    Raises:
        ArtifactError: the file is missing, damaged or of an unknown kind.
        CheckpointError: the checkpoint is missing, damaged or not a DETR.
        BackendError: the device or an extra is missing.
    """
    file = user_path(path)
    if file.suffix == ".onnx":
        from runtimes.ort_session import OrtSession

        return OrtSession(file, device, threads)
    if file.suffix in _ENGINE_SUFFIXES:
        raise BackendError(f"{file}: this version runs no TensorRT engines; give the ONNX file or the checkpoint")
    if os.path.isfile(file) and file.suffix not in _CHECKPOINT_SUFFIXES:
        raise ArtifactError(f"{file} is neither an .onnx file nor a checkpoint (a directory, a .pth file, a hub id)")
    from runtimes.torch_session import TorchSession

    return TorchSession.open(path, device, threads)


def require_detr(session: Session) -> None:
    """Refuses a model whose inputs and outputs are not a DETR's.

    Raises:
        ArtifactError: says what they are.
    """
    inputs = {spec.name for spec in session.inputs}
    outputs = {spec.name for spec in session.outputs}
    if "pixel_values" not in inputs or not inputs.issubset(DETR_INPUTS) or not outputs.issuperset(DETR_OUTPUTS):
        raise ArtifactError(
            f"the model is not a DETR: it maps {', '.join(sorted(inputs))} to {', '.join(sorted(outputs))}; "
            "expected pixel_values [and pixel_mask] to logits and pred_boxes"
        )


class Predictor:
    """A DETR from image to result. One predictor may serve many threads.

    Args:
        session: an open session of a DETR with metadata; the predictor closes it.

    Raises:
        ArtifactError: the model is not a DETR, or says nothing about its classes and images.
    """

    def __init__(self, session: Session) -> None:
        require_detr(session)
        if session.metadata is None:
            raise ArtifactError(
                "the file has no detr-export metadata (classes, image size); export it with: detr-export onnx"
            )
        channels = next(spec.shape[1] for spec in session.inputs if spec.name == "pixel_values")
        if channels != 3:
            raise ArtifactError(
                f"the model takes images of {channels} channels; a Predictor feeds RGB, use the session itself"
            )
        self.session = session
        self.metadata = session.metadata
        try:
            self.processor = DetrImageProcessor.from_dict(session.metadata.processor)
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"the file's image settings are not usable: {error}; export it again") from error
        self.id2label: Mapping[int, str] = session.metadata.id2label
        self._takes_mask = any(spec.name == "pixel_mask" for spec in session.inputs)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", threads: Optional[int] = None) -> Predictor:
        """Opens a file or checkpoint; arguments and errors as in `open_session`."""
        session = open_session(path, device, threads)
        try:
            return cls(session)
        except BaseException:
            session.close()
            raise

    @overload
    def detect(self, images: ImageSource, threshold: float = ...) -> Detections: ...
    @overload
    def detect(self, images: ImageList, threshold: float = ...) -> list[Detections]: ...
    def detect(self, images: Union[ImageSource, ImageList], threshold: float = 0.5) -> Union[Detections, list[Detections]]:
        """Finds objects.

        Args:
            images: a path, encoded bytes, a PIL image or an RGB array (height, width, 3) uint8; or a list of them, of
                any sizes, which runs as one padded batch. (A model without a pixel mask runs one for each size.)
            threshold: objects with a higher score are returned.

        Returns:
            One `Detections` for one image, a list for a list; scores, labels and boxes are those of
            `DetrImageProcessor.post_process_object_detection`.

        Raises:
            ImageError: an image cannot be read or processed.
            InputError: an image is outside the sizes that the model takes.
            BackendError: the backend failed.
        """
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}; expected a number from 0 to 1")
        single = not isinstance(images, (list, tuple))
        pictures = [load_image(source) for source in (images if isinstance(images, (list, tuple)) else [images])]
        sizes = [(picture.height, picture.width) for picture in pictures]
        results: list[Optional[Detections]] = [None] * len(pictures)
        for indices, outputs in self._run(pictures):
            found = self.processor.post_process_object_detection(outputs, threshold, [sizes[index] for index in indices])
            for index, item in zip(indices, found):
                names = tuple(self.id2label.get(int(label), str(label)) for label in item["labels"])
                results[index] = Detections(item["scores"], item["labels"], item["boxes"], names, sizes[index])
        done = [result for result in results if result is not None]
        return done[0] if single else done

    def _run(self, pictures: list[Any]) -> Iterable[tuple[list[int], dict[str, np.ndarray]]]:
        """Yields the indices of each batch with its raw outputs."""
        if not pictures:
            return
        if self._takes_mask:
            yield list(range(len(pictures))), self.session.run(self._inputs(pictures))
            return
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(pictures):
            by_size.setdefault(picture.size, []).append(index)
        for indices in by_size.values():
            yield indices, self.session.run(self._inputs([pictures[index] for index in indices]))

    def _inputs(self, pictures: list[Any]) -> dict[str, np.ndarray]:
        try:
            batch = self.processor.preprocess(pictures, return_tensors="np")
        except ValueError as error:  # of the settings; images raise ImageError
            raise ArtifactError(
                f"the model's image settings are not usable: {error}; correct the checkpoint's preprocessor_config.json"
            ) from error
        names = [spec.name for spec in self.session.inputs]
        if "pixel_mask" in names and "pixel_mask" not in batch:  # the settings say do_pad=False
            pixels = batch["pixel_values"]
            batch["pixel_mask"] = np.ones((pixels.shape[0], *pixels.shape[2:]), dtype=np.int64)
        return {name: batch[name] for name in names}

    def close(self) -> None:
        """Closes the session."""
        self.session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
