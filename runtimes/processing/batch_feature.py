"""`BatchFeature`, what an image processor returns: a dictionary of arrays or tensors, with attributes.

Source: `BatchFeature` of transformers 4.57.6. What differs, on purpose: a batch without tensors cannot be moved, where
upstream returns it unchanged.
"""

from __future__ import annotations

from typing import Any, Optional

from detr_export.runtimes.errors import InputError, OptionError
from detr_export.runtimes.processing.torch_tensors import is_dtype, is_tensor, require_torch, to_tensor

NUMPY, TORCH = "np", "pt"


class BatchFeature(dict):
    """A dict whose keys are attributes too: `out["pixel_values"]` is `out.pixel_values`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r}: this batch has {', '.join(self) or 'nothing'}") from None

    def to(self, target: Any = None, dtype: Any = None, *, device: Any = None, non_blocking: bool = False) -> BatchFeature:
        """Moves the tensors to a device, and floating point ones to a dtype, in place; returns the batch.

        `labels` is a list and stays where it is, as in transformers.

        Args:
            target: a device or a dtype.
            dtype, device: the same by their names; `batch.to("cuda", torch.float16)` is both.
            non_blocking: as in `torch.Tensor.to`.

        Raises:
            InputError: a device or a dtype is given twice, or the batch holds no tensors.
        """
        if is_dtype(target):
            target, dtype, given = None, target, dtype
            if given is not None:
                raise InputError("to() was given two dtypes; expected a device, a dtype or both")
        if target is not None and device is not None:
            raise InputError("to() was given two devices; expected a device, a dtype or both")
        device = target if device is None else device
        tensors = {name: value for name, value in self.items() if is_tensor(value)}
        if not tensors:
            raise InputError("the batch holds no tensors to move; make it with return_tensors='pt'")
        for name, value in tensors.items():
            wanted = dtype if value.is_floating_point() else None
            self[name] = value.to(device=device, dtype=wanted, non_blocking=non_blocking)
        return self

    def with_tensors(self) -> BatchFeature:
        """A copy with tensors in place of arrays, numbers and sizes, in the labels too.

        Raises:
            BackendError: PyTorch is not installed.
            InputError: a value is not made of numbers.
        """
        labels = {"labels": [label.with_tensors() for label in self["labels"]]} if "labels" in self else {}
        return BatchFeature({**{k: to_tensor(v) for k, v in self.items() if k != "labels"}, **labels})


def as_kind(return_tensors: Optional[str]) -> Optional[str]:
    """`return_tensors` as None, `NUMPY` or `TORCH`.

    Raises:
        OptionError: it is something else.
        BackendError: it asks for tensors, and PyTorch is not installed.
    """
    for kind in (NUMPY, TORCH):
        if return_tensors == kind:  # a plain string, also for a string enumeration
            if kind == TORCH:
                require_torch()
            return kind
    if return_tensors is not None:
        raise OptionError(f"return_tensors={return_tensors!r}: expected None, 'np' or 'pt'")
    return None
