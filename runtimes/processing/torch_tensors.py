"""PyTorch's tensors for callers who have them: tensors become arrays, arrays become tensors.

The processors compute in NumPy. PyTorch is imported only when somebody asks for tensors; whether a value is a tensor can be
said without it, because then somebody else has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.errors import InputError, missing_extra

_OUTPUTS = ("logits", "pred_boxes", "pred_masks")  # what post-processing reads


def is_tensor(value: Any) -> bool:
    """Whether a value is a PyTorch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_dtype(value: Any) -> bool:
    """Whether a value is a dtype of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.dtype)


def require_torch() -> Any:
    """The package. Raises BackendError if it is not installed."""
    try:
        import torch
    except ImportError:
        raise missing_extra("torch, which makes tensors,", "export") from None
    return torch


def to_array(tensor: Any) -> np.ndarray:
    """A tensor's values, without its gradient, on the CPU. bfloat16, which NumPy does not have, becomes float32.

    A tensor on the CPU shares its memory with the array.
    """
    tensor = tensor.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def values_of(value: Any) -> np.ndarray:
    """A tensor, an array or a sequence of numbers, as an array."""
    return to_array(value) if is_tensor(value) else np.asarray(value)


def probabilities_of(outputs: Any) -> Optional[np.ndarray]:
    """PyTorch's own softmax over the last axis of `logits`, float32; None if they are no tensor.

    It differs from NumPy's by the rounding of `exp`.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None or not is_tensor(logits):
        return None
    return to_array(logits.softmax(-1)).astype(np.float32)


def to_tensor(value: Any, device: Any = "cpu") -> Any:
    """A tensor of an array, a number or a sequence of numbers. An array that may be written to shares its memory.

    Raises:
        BackendError: PyTorch is not installed.
        InputError: the values are not numbers.
    """
    torch = require_torch()
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise InputError(f"{value!r} does not become a tensor; expected numbers")
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


def outputs_as_arrays(outputs: Any) -> tuple[Any, Any]:
    """The outputs of a model for NumPy, and where its tensors lay: their device, or None if there are none.

    Outputs without tensors are returned as they are.
    """
    mapping = isinstance(outputs, Mapping)
    given: dict[str, Any] = {name: outputs.get(name) if mapping else getattr(outputs, name, None) for name in _OUTPUTS}
    devices = [value.device for value in given.values() if is_tensor(value)]
    if not devices:
        return outputs, None
    arrays = {name: to_array(value) if is_tensor(value) else value for name, value in given.items()}
    return {name: value for name, value in arrays.items() if value is not None}, devices[0]


def sizes_as_arrays(target_sizes: Any) -> Any:
    """Sizes, as one tensor or as a list of tensors, for NumPy; everything else is returned as it is."""
    if is_tensor(target_sizes):
        return to_array(target_sizes)
    if isinstance(target_sizes, (list, tuple)):
        return [to_array(size) if is_tensor(size) else size for size in target_sizes]
    return target_sizes


def as_given(results: Any, device: Any) -> Any:
    """Results with their arrays as tensors on `device`; as they are when it is None."""
    if device is None:
        return results
    if isinstance(results, list):
        return [as_given(item, device) for item in results]
    if isinstance(results, dict):
        return {name: as_given(item, device) for name, item in results.items()}
    return to_tensor(results, device) if isinstance(results, np.ndarray) else results
