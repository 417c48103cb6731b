"""A variant inside its process: a session, and the pre- and post-processing that people use with it.

The files and checkpoints of this project run with its own processor, and transformers' model with transformers' slow one.
The size is always the one under test, so every variant computes the same number of pixels. Beside an end-to-end file it is
the size of the pictures, and every variant resizes them as its own settings say.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detr_export.benchmarks.speed.device_stages import Stages, run_engine_in_stages, run_ort_in_stages
from detr_export.benchmarks.speed.gpu_state import TF32, has_tf32
from detr_export.benchmarks.speed.peers import TransformersSession
from detr_export.benchmarks.speed.pictures import USUAL_SIZE
from detr_export.benchmarks.speed.targets import BACKENDS
from detr_export.runtimes.detr_interface import require_detr
from detr_export.runtimes.files import sha256_of_file, user_path
from detr_export.runtimes.mask_head import with_mask_head
from detr_export.runtimes.metadata import RGB, UINT8
from detr_export.runtimes.processing.end_to_end import image_batch, keep_sorted
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.runtimes.processing.sizes import output_size
from detr_export.runtimes.processing.uint8_batch import uint8_batch
from detr_export.runtimes.session import Session, is_end_to_end

if TYPE_CHECKING:
    from detr_export.runtimes.backends.ort.session import OrtSession
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

# The device of each backend, in the words of `OrtSession`.
_ORT_DEVICES = {"ort": "cpu", "ort-cuda": "cuda", "ort-tensorrt": "tensorrt", "ort-tensorrt-rtx": "tensorrt-rtx"}
THRESHOLD = 0.5  # of the detections; `Predictor.detect`'s

Arrays = Mapping[str, np.ndarray]


class Pipeline(ABC):
    """From pictures to detections, in three steps."""

    def __init__(self, session: Session, version: str, precision: str | None = None) -> None:
        require_detr(session)
        self.session = session
        self.version = version  # of the backend's library
        self.precision = precision or (session.metadata.precision if session.metadata else "fp32")
        self._names = [spec.name for spec in session.inputs]
        self._takes_bytes = session.metadata is not None and session.metadata.input == UINT8
        self.end_to_end = is_end_to_end(session)

    def preprocess(self, pictures: Sequence[Image.Image], size: tuple[int, int] | None) -> dict[str, np.ndarray]:
        """The session's inputs of a batch.

        Args:
            pictures: of one size, if `size` is None.
            size: (height, width) that every picture is resized to; the model's own settings decide when None.
        """
        return self._declared(
            self._preprocess(list(pictures), None if size is None else {"height": size[0], "width": size[1]})
        )

    def inputs(self, processor: DetrImageProcessor, pictures: list[Image.Image]) -> dict[str, np.ndarray]:
        """The session's inputs of a batch, as this processor makes them in place of the model's own."""
        if self._takes_bytes:
            return self._declared(uint8_batch(processor, pictures))
        return self._declared(processor.preprocess(pictures, return_tensors="np"))

    def _declared(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The session's inputs from `batch`, in fp16 where the file takes that; with a mask where the settings made none."""
        if "pixel_mask" in self._names and "pixel_mask" not in batch:  # the settings say do_pad=False
            pixels = batch["pixel_values"]
            batch = {**batch, "pixel_mask": np.ones((pixels.shape[0], *pixels.shape[2:]), dtype=np.int64)}
        return {spec.name: np.asarray(batch[spec.name]).astype(spec.dtype, copy=False) for spec in self.session.inputs}

    @abstractmethod
    def _preprocess(self, pictures: list[Image.Image], size: dict[str, int] | None) -> Mapping[str, Any]: ...

    @abstractmethod
    def postprocess(self, outputs: Arrays, sizes: list[tuple[int, int]]) -> Any:
        """Detections of pictures of these (height, width)."""

    @abstractmethod
    def own_size(self) -> tuple[int, int]:
        """(height, width) that the model's settings make of a picture of the usual size."""

    def checkpoint(self) -> str:
        """SHA-256 of the weights that it was made from; empty where nothing says."""
        return str(self.session.metadata.source.get("sha256", "")) if self.session.metadata else ""

    def stages(self, inputs: Arrays) -> Stages | None:
        """One run of the session in stages; None on the CPU, and where the stages cannot be told apart."""
        return None

    def start_workload(self) -> None:  # noqa: B027  # most have nothing to do
        """Called before the first run at a new size or batch size."""


class OwnPipeline(Pipeline):
    """With this project's processor, in the settings of the model; in the usual ones where the model has none."""

    def __init__(self, session: Session, version: str, precision: str | None = None) -> None:
        super().__init__(session, version, precision)
        metadata = session.metadata
        self._processor = processor_from_dict(metadata.processor) if metadata else DetrImageProcessor()
        self._color = metadata.end_to_end.color if metadata and metadata.end_to_end else RGB

    def _preprocess(self, pictures: list[Image.Image], size: dict[str, int] | None) -> Mapping[str, Any]:
        if self.end_to_end:
            return image_batch(pictures, self._color)
        if self._takes_bytes:
            return uint8_batch(self._processor, pictures, size)
        return self._processor.preprocess(pictures, size=size, return_tensors="np")

    def postprocess(self, outputs: Arrays, sizes: list[tuple[int, int]]) -> Any:
        if self.end_to_end:
            return keep_sorted(outputs, THRESHOLD)
        return self._processor.post_process_object_detection(outputs, THRESHOLD, sizes)

    def own_size(self) -> tuple[int, int]:
        return USUAL_SIZE if self.end_to_end else output_size(*USUAL_SIZE, self._processor.size)


class CudaPipeline(OwnPipeline):
    """ONNX Runtime on a GPU, with the CUDA or the TensorRT provider."""

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

    def start_workload(self) -> None:
        import torch

        torch._dynamo.reset()  # after eight shapes it would give up, and run eagerly without a word


class TransformersPipeline(Pipeline):
    """With transformers' slow processor."""

    session: TransformersSession

    def checkpoint(self) -> str:
        from detr_export.checkpoints.reading import sha256_of_directory

        return sha256_of_directory(self.session.directory)

    def _preprocess(self, pictures: list[Image.Image], size: dict[str, int] | None) -> Mapping[str, Any]:
        batch: Mapping[str, Any] = self.session.processor(pictures, size=size, return_tensors="np")
        return batch

    def postprocess(self, outputs: Arrays, sizes: list[tuple[int, int]]) -> Any:
        return self.session.post_process(outputs, THRESHOLD, sizes)

    def own_size(self) -> tuple[int, int]:
        return output_size(*USUAL_SIZE, dict(self.session.processor.size))


def open_pipeline(backend: str, source: str, threads: int, max_batch: int = 1, uint8: bool = False) -> Pipeline:
    """Opens a model in a backend of `targets.BACKENDS`.

    Args:
        backend, source: the target's.
        threads: of one run on the CPU.
        max_batch: the largest batch that will be run, for backends that build engines when they open a file.
        uint8: whether a checkpoint on a GPU takes uint8 images. What a file takes, it says itself.

    Raises:
        ArtifactError, CheckpointError: the model is missing, damaged or no DETR.
        BackendError: the backend's package or device is missing.
    """
    if backend in _ORT_DEVICES:
        return _open_ort(backend, source, threads, max_batch)
    if backend == "tensorrt":
        from detr_export.runtimes.backends.tensorrt.session import TensorRTSession
        from detr_export.runtimes.backends.tensorrt.sidecar import source_of

        engine = _whole(source, lambda file: TensorRTSession(file, BACKENDS[backend].device), source_of)
        kind = EnginePipeline if isinstance(engine, TensorRTSession) else OwnPipeline
        return kind(engine, _version("tensorrt"))
    if backend == "openvino":
        from detr_export.runtimes.backends.openvino.session import OpenVinoSession

        session = _whole(source, lambda file: OpenVinoSession(file, threads=threads))
        return OwnPipeline(session, distributions.version("openvino"))
    if backend == "transformers":
        transformers = TransformersSession(user_path(source), threads)
        return TransformersPipeline(transformers, transformers.version)
    return _open_torch(backend, source, threads, uint8)


def _open_ort(backend: str, source: str, threads: int, max_batch: int) -> Pipeline:
    from detr_export.runtimes.backends.ort.session import OrtSession

    device, version = _ORT_DEVICES[backend], _version("onnxruntime", "onnxruntime-gpu")
    if device == "cpu":
        return OwnPipeline(_whole(source, lambda file: OrtSession(file, device, threads)), version)
    session = _whole(source, lambda file: OrtSession(file, device, max_batch=None if device == "cuda" else max_batch))
    # NVIDIA's libraries compute the float32 products of a file in TF32 unless they are told otherwise; nobody tells them.
    file = session.metadata.precision if session.metadata else "fp32"
    precision = TF32 if file == "fp32" and has_tf32() else file
    # The plugin's memory has a name of its own, so its runs are not taken apart; nor are those of two graphs.
    whole = isinstance(session, OrtSession) and device != "tensorrt-rtx"
    return (CudaPipeline if whole else OwnPipeline)(session, version, precision)


def _whole(source: str, open_file: Callable[[Path], Session], digest_of: Callable[[Path], str] = sha256_of_file) -> Session:
    """A file with its mask head, where it has one; then every run draws the masks of all queries."""
    file = user_path(source)
    return with_mask_head(file, open_file(file), open_file, digest_of=digest_of)


def _open_torch(backend: str, source: str, threads: int, uint8: bool) -> Pipeline:
    from detr_export.benchmarks.speed import torch_variants
    from detr_export.runtimes.backends.torch_session import TorchSession

    version = _version("torch")
    if backend == "torch-compile":
        return CompiledPipeline(torch_variants.open_compiled(source, threads), version)
    if backend == "torch-cuda-fp16":
        return OwnPipeline(torch_variants.AutocastSession(source, uint8=uint8), version, "fp16")
    if backend == "torch-compile-cuda-fp16":
        return CompiledPipeline(torch_variants.AutocastSession(source, compiled=True, uint8=uint8), version, "fp16")
    if backend == "torch-cuda":
        session = torch_variants.DeployedSession(source, uint8=uint8)
        return OwnPipeline(session, version, TF32 if torch_variants.convolutions_use_tf32() else "fp32")
    return OwnPipeline(TorchSession.open(source, threads=threads), version)


def _version(*packages: str) -> str:
    for package in packages:
        with contextlib.suppress(distributions.PackageNotFoundError):
            return distributions.version(package)
    return "unknown"
