"""DETR checkpoints to verified ONNX files and engines, and one `Predictor` that runs all of them.

The names below are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr_export.config import DetrConfig
    from detr_export.modeling.detr import DetrForObjectDetection, DetrModel
    from detr_export.modeling.segmentation import DetrForSegmentation
    from detr_export.runtimes import (
        Detections,
        DetrError,
        DetrFeatureExtractor,
        DetrImageProcessor,
        DetrImageProcessorFast,
        Predictor,
        Segmentation,
        Table,
        load_image,
        open_session,
    )

__version__ = "0.1.0"

__all__ = [
    "Detections",
    "DetrConfig",
    "DetrError",
    "DetrFeatureExtractor",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrImageProcessor",
    "DetrImageProcessorFast",
    "DetrModel",
    "Predictor",
    "Segmentation",
    "Table",
    "load_image",
    "open_session",
]
# What needs PyTorch, and where it is; the rest is in `runtimes`.
_MODELS = {
    "DetrConfig": "config",
    "DetrForObjectDetection": "modeling.detr",
    "DetrForSegmentation": "modeling.segmentation",
    "DetrModel": "modeling.detr",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'detr_export' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"detr_export.{_MODELS.get(name, 'runtimes')}")
    except ModuleNotFoundError as error:
        from detr_export.runtimes.errors import missing_extra

        raise missing_extra(f"{error.name}, which {name} needs,", "export") from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
