"""Checks the arrays that a caller provides for a session's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.session import TensorSpec


def check_output_arrays(specs: Sequence[TensorSpec], inputs: Mapping[str, np.ndarray], outputs: Mapping[str, Any]) -> None:
    """Checks what can be known before a run; how large a dimension with a name becomes is only known after it.

    Raises:
        InputError: an array has an unknown name, another dtype, rank or fixed size, is not writable or not C-contiguous, or
            shares memory with an input or another output.
    """
    by_name = {spec.name: spec for spec in specs}
    taken = {f"input {name}": array for name, array in inputs.items()}
    for name, array in outputs.items():
        spec = by_name.get(name)
        if spec is None:
            raise InputError(f"outputs has {name!r}; expected some of {', '.join(by_name)}")
        if not isinstance(array, np.ndarray):
            raise InputError(f"output {name} is a {type(array).__name__}; expected a numpy array of {spec.dtype}")
        if array.dtype.name != spec.dtype or not array.dtype.isnative:
            raise InputError(
                f"output {name} is {array.dtype.str}; expected {spec.dtype} in this machine's byte order; "
                f"make it with numpy.empty(shape, {spec.dtype!r})"
            )
        if len(array.shape) != len(spec.shape) or any(
            isinstance(size, int) and size != given for size, given in zip(spec.shape, array.shape)
        ):
            raise InputError(f"output {name} has shape {array.shape}; expected ({', '.join(map(str, spec.shape))})")
        if not array.flags.c_contiguous or not array.flags.writeable:
            what = "read-only" if array.flags.c_contiguous else "not C-contiguous"
            raise InputError(
                f"output {name} is {what}; expected a writable array of one block of memory, such as numpy.empty makes"
            )
        for other, memory in taken.items():
            if np.may_share_memory(array, memory):
                raise InputError(f"output {name} and {other} share memory; expected an array for each")
        taken[f"output {name}"] = array


def require_fitting_shapes(
    specs: Sequence[TensorSpec], given: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray]
) -> None:
    """Raises InputError if an array of the caller does not have the shape that the model gave."""
    for spec in specs:
        if spec.name in given and given[spec.name].shape != results[spec.name].shape:
            shape = results[spec.name].shape
            raise InputError(
                f"output {spec.name} has shape {given[spec.name].shape}, and for these inputs the model gives {shape}; "
                f"pass numpy.empty({shape}, {spec.dtype!r}), or leave {spec.name} out"
            )
