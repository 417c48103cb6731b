"""ONNX Runtime, with its telemetry off. All of the project imports it from here."""

from __future__ import annotations

from detr_export.runtimes.backends.ort.telemetry import is_off
from detr_export.runtimes.errors import missing_extra

try:
    import onnxruntime
except ImportError as error:
    raise missing_extra("onnxruntime", "cpu") from error

__all__ = ["onnxruntime"]

# For an onnxruntime that somebody loaded before `telemetry` was. Older ones have no such function.
if is_off() and hasattr(onnxruntime, "disable_telemetry_events"):
    onnxruntime.disable_telemetry_events()
