"""DETR checkpoints to verified ONNX files and engines, and one `Predictor` that runs all of them.

The names below are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr_export.runtimes import (
        Detections,
        DetrError,
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
    "DetrError",
    "DetrImageProcessor",
    "DetrImageProcessorFast",
    "Predictor",
    "Segmentation",
    "Table",
    "load_image",
    "open_session",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'detr_export' has no attribute {name!r}")
    from detr_export import runtimes

    return getattr(runtimes, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
