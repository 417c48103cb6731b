"""Whether the installed onnxruntime can make int8 graphs."""

from __future__ import annotations

import re
from importlib import metadata as distributions

from detr_export.runtimes.errors import BackendError, missing_extra

_FIRST = (1, 21)  # it quantises float biases as it loads a graph; without that, convolutions with a bias stay float


def require_quantizer() -> None:
    """Refuses an onnxruntime that is missing or too old.

    Raises:
        BackendError: says what to install.
    """
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version = distributions.version(name)
        except distributions.PackageNotFoundError:
            continue
        major, minor = (int(number) for number in re.findall(r"\d+", version)[:2])
        if (major, minor) < _FIRST:
            wanted = ".".join(map(str, _FIRST))
            raise BackendError(f"{name} {version} is too old for int8; run: pip install '{name}>={wanted}'")
        return
    raise missing_extra("onnxruntime, which quantises,", "cpu")
