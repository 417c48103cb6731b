"""What people would use instead, behind the session contract: transformers' own model.

transformers is imported inside of the class, so a process that measures something else does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.benchmarks.oracle import import_transformers
from detr_export.runtimes.errors import BackendError, CheckpointError, first_line
from detr_export.runtimes.session import Session, TensorSpec

_CLASSES = {"detr": "DetrForObjectDetection", "table-transformer": "TableTransformerForObjectDetection"}


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

        self.directory = Path(directory)
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
        return self.processor.post_process_object_detection(self._tensors(outputs), threshold, sizes)

    def segment_panoptic(self, picture: np.ndarray, threshold: float) -> Any:
        """The whole way from an RGB picture (height, width, 3) uint8 to a panoptic segmentation, as its users go it."""
        inputs = self.processor(picture, return_tensors="np", input_data_format="channels_last")
        outputs = self.run({spec.name: np.asarray(inputs[spec.name]) for spec in self.inputs})
        sizes = [picture.shape[:2]]
        return self.processor.post_process_panoptic_segmentation(self._tensors(outputs), threshold, target_sizes=sizes)

    def _tensors(self, outputs: Mapping[str, np.ndarray]) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(**{name: self._torch.from_numpy(value) for name, value in outputs.items()})

    def close(self) -> None:
        self._model = None


def _load(transformers: Any, directory: str | Path, config: Any, segments: bool) -> Any:
    """The model in float32, and the names of weights that are missing or left over."""
    kind = getattr(transformers, "DetrForSegmentation" if segments else _CLASSES[config.model_type])
    return kind.from_pretrained(directory, config=config, local_files_only=True, output_loading_info=True, dtype="float32")
