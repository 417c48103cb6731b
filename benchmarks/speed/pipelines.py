"""A variant inside its process: a session, and the pre- and post-processing that people use with it.

The files and checkpoints of this project go with its own processor, transformers' model with transformers' slow one. The
size is always the one under test, so every variant computes the same number of pixels.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata as distributions
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from detr_export.benchmarks.speed.device_stages import Stages, run_engine_in_stages, run_ort_in_stages
from detr_export.benchmarks.speed.peers import OpenVinoSession, TransformersSession
from detr_export.benchmarks.speed.targets import BACKENDS
from detr_export.runtimes.files import user_path
from detr_export.runtimes.metadata import UINT8
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.runtimes.processing.sizes import output_size
from detr_export.runtimes.processing.uint8_batch import uint8_batch
from detr_export.runtimes.session import Session, require_detr

if TYPE_CHECKING:
    from detr_export.runtimes.backends.ort.session import OrtSession
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

THRESHOLD = 0.5  # of the detections; `Predictor.detect`'s
USUAL_PICTURE = (480, 640)  # height and width of most of COCO, which a model's own size is derived from

Arrays = Mapping[str, np.ndarray]


class Pipeline(ABC):
    """From pictures to detections, in three steps."""

    def __init__(self, session: Session, version: str) -> None:
        require_detr(session)
        self.session = session
        self.version = version  # of the backend's library
        self._names = [spec.name for spec in session.inputs]
        self._takes_bytes = session.metadata is not None and session.metadata.input == UINT8

    def preprocess(self, pictures: Sequence[Image.Image], height: int, width: int) -> dict[str, np.ndarray]:
        """The session's inputs of a batch, every picture resized to exactly (height, width)."""
        return self._declared(self._preprocess(list(pictures), {"height": height, "width": width}))

    def inputs(self, processor: DetrImageProcessor, pictures: list[Image.Image]) -> dict[str, np.ndarray]:
        """The session's inputs of a batch as this processor makes them, and not the model's own."""
        if self._takes_bytes:
            return self._declared(uint8_batch(processor, pictures))
        return self._declared(processor.preprocess(pictures, return_tensors="np"))

    def _declared(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The session's inputs among `batch`, with a mask where the settings made none; fp16 where the file takes that."""
        if "pixel_mask" in self._names and "pixel_mask" not in batch:  # the settings say do_pad=False
            pixels = batch["pixel_values"]
            batch = {**batch, "pixel_mask": np.ones((pixels.shape[0], *pixels.shape[2:]), dtype=np.int64)}
        return {spec.name: np.asarray(batch[spec.name]).astype(spec.dtype, copy=False) for spec in self.session.inputs}

    @abstractmethod
    def _preprocess(self, pictures: list[Image.Image], size: dict[str, int]) -> Mapping[str, Any]: ...

    @abstractmethod
    def postprocess(self, outputs: Arrays, sizes: list[tuple[int, int]]) -> Any:
        """Detections of pictures of these (height, width)."""

    @abstractmethod
    def own_size(self) -> tuple[int, int]:
        """(height, width) that the model's settings make of a picture of `USUAL_PICTURE`."""

    def stages(self, inputs: Arrays) -> Stages | None:
        """One run of the session in stages; None where there is no device apart from the host."""
        return None

    def start_case(self) -> None:  # noqa: B027  # most have nothing to do
        """Called before the first run at a new size or batch size."""


class OwnPipeline(Pipeline):
    """With this project's processor, in the settings of the model or, where it says none, the usual ones."""

    def __init__(self, session: Session, version: str) -> None:
        super().__init__(session, version)
        metadata = session.metadata
        self._processor = processor_from_dict(metadata.processor) if metadata else DetrImageProcessor()

    def _preprocess(self, pictures: list[Image.Image], size: dict[str, int]) -> Mapping[str, Any]:
        if self._takes_bytes:
            return uint8_batch(self._processor, pictures, size)
        return self._processor.preprocess(pictures, size=size, return_tensors="np")

    def postprocess(self, outputs: Arrays, sizes: list[tuple[int, int]]) -> Any:
        return self._processor.post_process_object_detection(outputs, THRESHOLD, sizes)

    def own_size(self) -> tuple[int, int]:
        return output_size(*USUAL_PICTURE, self._processor.size)


class CudaPipeline(OwnPipeline):
    """ONNX Runtime on a GPU."""

    session: OrtSession

    def stages(self, inputs: Arrays) -> Stages:
        return run_ort_in_stages(self.session.runtime, inputs)[1]


class EnginePipeline(OwnPipeline):
    """A TensorRT engine."""

    session: TensorRTSession

    def stages(self, inputs: Arrays) -> Stages:
        return run_engine_in_stages(self.session, inputs)[1]


class CompiledPipeline(OwnPipeline):
    """`torch.compile` of this project's model, for one shape at a time."""

    def start_case(self) -> None:
        import torch

        torch._dynamo.reset()  # after eight shapes it would give up, and run eagerly without a word


class TransformersPipeline(Pipeline):
    """With transformers' slow processor."""

    session: TransformersSession

    def _preprocess(self, pictures: list[Image.Image], size: dict[str, int]) -> Mapping[str, Any]:
        batch: Mapping[str, Any] = self.session.processor(pictures, size=size, return_tensors="np")
        return batch

    def postprocess(self, outputs: Arrays, sizes: list[tuple[int, int]]) -> Any:
        return self.session.post_process(outputs, THRESHOLD, sizes)

    def own_size(self) -> tuple[int, int]:
        return output_size(*USUAL_PICTURE, dict(self.session.processor.size))


def open_pipeline(backend: str, source: str, threads: int) -> Pipeline:
    """Opens a model in a backend of `targets.BACKENDS`.

    Raises:
        ArtifactError, CheckpointError: the model is missing, damaged or no DETR.
        BackendError: the backend's package or device is missing.
    """
    if backend in ("ort", "ort-cuda"):
        from detr_export.runtimes.backends.ort.session import OrtSession

        device = BACKENDS[backend].device
        kind = OwnPipeline if device == "cpu" else CudaPipeline
        return kind(OrtSession(user_path(source), device, threads), _version("onnxruntime", "onnxruntime-gpu"))
    if backend == "tensorrt":
        from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

        return EnginePipeline(TensorRTSession(user_path(source), BACKENDS[backend].device), _version("tensorrt"))
    if backend == "openvino":
        openvino = OpenVinoSession(user_path(source), threads)
        return OwnPipeline(openvino, openvino.version)
    if backend == "transformers":
        transformers = TransformersSession(user_path(source), threads)
        return TransformersPipeline(transformers, transformers.version)
    from detr_export.runtimes.backends.torch_session import TorchSession

    if backend == "torch":
        return OwnPipeline(TorchSession.open(source, threads=threads), _version("torch"))
    return CompiledPipeline(_compiled_session(source, threads), _version("torch"))


def _compiled_session(source: str, threads: int) -> Session:
    import torch

    from detr_export.checkpoints.reading import load_checkpoint
    from detr_export.graphs.description import describe
    from detr_export.loading import load_model
    from detr_export.modeling.deployed import DeployedModel
    from detr_export.runtimes.backends.torch_session import TorchSession

    checkpoint = load_checkpoint(source)
    model = cast(torch.nn.Module, torch.compile(DeployedModel(load_model(checkpoint)).eval(), dynamic=False))
    return TorchSession(model, describe(checkpoint), checkpoint.config.num_channels, threads=threads)


def _version(*packages: str) -> str:
    for package in packages:
        with contextlib.suppress(distributions.PackageNotFoundError):
            return distributions.version(package)
    return "unknown"
