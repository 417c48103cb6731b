"""Opens the libraries that results can be handed to, when that is asked for."""

from __future__ import annotations

from types import ModuleType

from detr_export.runtimes.errors import missing_package


def for_supervision() -> ModuleType:
    """What makes objects of supervision. Raises BackendError if it cannot be imported."""
    try:
        from detr_export.runtimes.results.interop import supervision_detections
    except ImportError as error:
        raise missing_package("supervision", error) from error
    return supervision_detections


def for_pandas() -> ModuleType:
    """What makes objects of pandas. Raises BackendError if it cannot be imported."""
    try:
        from detr_export.runtimes.results.interop import pandas_frames
    except ImportError as error:
        raise missing_package("pandas", error) from error
    return pandas_frames
