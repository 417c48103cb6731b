"""What is used of onnxruntime's quantisation, imported without a trace in `sys.path`.

Its modules import each other by their bare names, from a folder that its package `transformers` adds to `sys.path` when it
is first imported. Whoever imported that before, and took the folder out again, such as the cast to fp16, would break the
import.
"""

from __future__ import annotations

import sys
from pathlib import Path

from detr_export.runtimes.backends.ort.library import onnxruntime

_path = list(sys.path)
sys.path.append(str(Path(onnxruntime.__file__).parent / "transformers"))
try:
    from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData
    from onnxruntime.quantization.calibrate import HistogramCollector
finally:
    sys.path[:] = _path

__all__ = ["HistogramCollector", "QDQQuantizer", "QuantType", "TensorData"]
