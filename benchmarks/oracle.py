"""Opens transformers, the reference for numbers and speed, where torchvision's C++ library cannot be loaded.

transformers imports torchvision. That import fails beside a torch that it was not built for (a CUDA wheel beside a CPU
torch, say), because ``torchvision::nms`` and its siblings were never registered. Nothing here calls them, so declaring
their names is enough. A torchvision that can be loaded is left as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

from detr_export.runtimes.errors import missing_extra

_LIBRARIES: list[object] = []  # a torch Library takes its operators back when it is collected


def import_transformers() -> ModuleType:
    """The transformers package, ready to use.

    Raises:
        BackendError: transformers or torch is not installed.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "oracle")
    make_torchvision_importable()
    return importlib.import_module("transformers")


def make_torchvision_importable() -> None:
    """Declare torchvision's operators if it is installed and cannot be imported without them."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # "operator torchvision::nms does not exist"
        _declare_torchvision_operators()


def _declare_torchvision_operators() -> None:
    """Declare, without implementation or arguments, every operator that torchvision's own source refers to."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = re.findall(r'@register_meta\("(\w+)"', source) + re.findall(r'"torchvision::(\w+)"', source)
    library = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    for name in dict.fromkeys(names):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}() -> ()")
