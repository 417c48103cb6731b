"""What people would use instead, behind the session contract: transformers' own model, and OpenVINO.

Each library is imported inside the class that needs it, so a process that measures one of them does not load the other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.benchmarks.oracle import import_transformers
from detr_export.runtimes.errors import ArtifactError, BackendError, CheckpointError, first_line, missing_extra
from detr_export.runtimes.metadata import METADATA_KEY, OPERATOR, Metadata, read_metadata
from detr_export.runtimes.session import UNKNOWN, Session, TensorSpec

_CLASSES = {"detr": "DetrForObjectDetection", "table-transformer": "TableTransformerForObjectDetection"}
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # OpenVINO's names of precisions


class TransformersSession(Session):
    """transformers' own DETR or Table Transformer, eager, in eval mode and float32.

    Args:
        directory: a checkpoint as `save_pretrained` writes it.
        threads: PyTorch's, in the whole process.

    Raises:
        BackendError: transformers is not installed.
        CheckpointError: transformers cannot read the folder, or weights are missing in it.
    """

    def __init__(self, directory: str | Path, threads: int) -> None:
        transformers = import_transformers()
        import torch

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        try:
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
            if config.model_type not in _CLASSES:
                raise CheckpointError(f"{directory} is of the model type {config.model_type}; expected a DETR")
            config.use_pretrained_backbone = False  # else timm downloads weights, which the checkpoint's then replace
            # Some checkpoints do not name their class; then the names of their weights tell it.
            segments = "DetrForSegmentation" in (config.architectures or ())
            model, loading = _load(transformers, directory, config, segments)
            if not segments and any(name.startswith("mask_head.") for name in loading["unexpected_keys"]):
                segments = True
                model, loading = _load(transformers, directory, config, segments)
            if loading["missing_keys"]:
                raise CheckpointError(
                    f"{directory} lacks {sorted(loading['missing_keys'])[0]}; is it a checkpoint of a DETR?"
                )
            self.processor = transformers.DetrImageProcessor.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"transformers cannot open {directory}: {first_line(error)}") from error

        # Say what it takes and gives, as every session does.
        self._model: Any = model.eval()
        self._torch = torch
        self.version = str(transformers.__version__)
        self.inputs = (
            TensorSpec("pixel_values", "float32", ("batch", config.num_channels, "height", "width")),
            TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
        )
        self.outputs = (
            TensorSpec("logits", "float32", ("batch", "queries", config.num_labels + 1)),
            TensorSpec("pred_boxes", "float32", ("batch", "queries", 4)),
            *([TensorSpec("pred_masks", "float32", ("batch", "queries", "mask_height", "mask_width"))] if segments else []),
        )

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._model is None:
            raise BackendError("the session is closed")
        with self._torch.inference_mode():
            try:
                found = self._model(**{name: self._torch.from_numpy(value) for name, value in inputs.items()})
            except RuntimeError as error:
                raise BackendError(f"transformers failed: {first_line(error)}") from error
            return {spec.name: found[spec.name].numpy() for spec in self.outputs}

    def post_process(self, outputs: Mapping[str, np.ndarray], threshold: float, sizes: list[tuple[int, int]]) -> Any:
        """`DetrImageProcessor.post_process_object_detection` of what `run` gave."""
        from types import SimpleNamespace

        tensors = SimpleNamespace(**{name: self._torch.from_numpy(value) for name, value in outputs.items()})
        return self.processor.post_process_object_detection(tensors, threshold, sizes)

    def close(self) -> None:
        self._model = None


class OpenVinoSession(Session):
    """An ONNX file in OpenVINO on the CPU, set for the shortest latency. `run` may be called from several threads.

    OpenVINO is told to compute in the file's precision. By default it computes in bfloat16 wherever the CPU can.

    Args:
        path: the ONNX file.
        threads: of one run.

    Raises:
        BackendError: OpenVINO is not installed.
        ArtifactError: OpenVINO cannot read the file, or would resize images another way than the file says.
    """

    def __init__(self, path: str | Path, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing_extra("openvino", "bench") from error
        core = openvino.Core()
        try:
            model = core.read_model(str(path))
            self.metadata: Metadata | None = read_metadata(Path(path), _metadata_text(model))
            _require_right_resize(Path(path), self.metadata)
            precision = self.metadata.precision if self.metadata else "fp32"
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _HINTS.get(precision, "f32"),
                "INFERENCE_NUM_THREADS": threads,
            }
            self._model: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise ArtifactError(f"{path} cannot be loaded by OpenVINO: {first_line(error)}") from error
        self._requests = threading.local()  # a request serves one caller at a time
        self.version = str(openvino.__version__).partition("-")[0]
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(_spec(port) for port in self._model.outputs)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._model is None:
            raise BackendError("the session is closed")
        try:
            if not hasattr(self._requests, "own"):
                self._requests.own = self._model.create_infer_request()
            # Outputs are copied, since the next run of the request writes over them.
            found = self._requests.own.infer(dict(inputs), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {first_line(error)}") from error
        return {spec.name: found[spec.name] for spec in self.outputs}

    def close(self) -> None:
        self._model = None
        self._requests = threading.local()


def _load(transformers: Any, directory: str | Path, config: Any, segments: bool) -> Any:
    """The model in float32, and the names of weights that are missing or left over."""
    kind = getattr(transformers, "DetrForSegmentation" if segments else _CLASSES[config.model_type])
    return kind.from_pretrained(directory, config=config, local_files_only=True, output_loading_info=True, dtype="float32")


def _require_right_resize(path: Path, metadata: Metadata | None) -> None:
    """OpenVINO reads ONNX's Resize, but leaves the antialiasing out: pixels are up to 144 of 255 levels off."""
    if metadata is not None and metadata.end_to_end is not None and metadata.end_to_end.resize == OPERATOR:
        raise ArtifactError(
            f"{path} resizes with ONNX's Resize, which OpenVINO computes without antialiasing; "
            "export it with --resize matmul"
        )


def _metadata_text(model: Any) -> str | None:
    """The entry of ONNX's metadata_props, which OpenVINO keeps under `framework`."""
    path = ["framework", METADATA_KEY]
    return str(model.get_rt_info(path).astype(str)) if model.has_rt_info(path) else None


def _spec(port: Any) -> TensorSpec:
    shape = tuple(UNKNOWN if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, str(port.element_type.to_dtype()), shape)
