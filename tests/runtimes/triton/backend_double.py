"""A double of `triton_python_backend_utils`, as far as a model uses it. The real one is in Triton's Python backend."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np


class TritonModelException(Exception):
    pass


class TritonError:
    INTERNAL, INVALID_ARG = "internal", "invalid argument"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    @staticmethod
    def from_dlpack(name: str, other: Tensor) -> Tensor:
        return Tensor(name, other.array.copy())

    def as_numpy(self) -> np.ndarray:
        return self.array


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.array for tensor in output_tensors}
        self.error = error


class Request:
    """What a model gets of one request: arrays by name."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


def double() -> ModuleType:
    """The module under the name that a model imports."""
    module: Any = ModuleType("triton_python_backend_utils")
    for name in ("TritonModelException", "TritonError", "Tensor", "InferenceResponse", "get_input_tensor_by_name"):
        setattr(module, name, getattr(sys.modules[__name__], name))
    return module
