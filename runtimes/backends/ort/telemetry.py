"""Switches ONNX Runtime's telemetry off. This is imported before onnxruntime, and before what imports it on its own.

The official packages of 1.32 and later send events to Microsoft, keep an identifier and a database below
`~/.cache/Microsoft`, and complain on stderr where they cannot (`Privacy.md` in the package). The environment variable
switches all of that off. It has to be set before the library is loaded, and processes that this one starts inherit it. A
value that is set already stays.
"""

from __future__ import annotations

import os

_VARIABLE = "ORT_DISABLE_TELEMETRY"

os.environ.setdefault(_VARIABLE, "1")


def is_off() -> bool:
    """Whether nobody asked for the telemetry."""
    return os.environ.get(_VARIABLE) == "1"
