"""The contract that every backend keeps: open, describe, run, close.

A session takes and returns numpy arrays by name. Its inputs are checked here, in one place, before the backend sees them.
The arrays that it returns belong to the caller.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Optional, TypeVar, Union

import numpy as np

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.runtimes.metadata import Metadata

DETR_INPUTS = ("pixel_values", "pixel_mask", "valid_sizes")  # a mask with float images, sizes with uint8 ones
DETR_OUTPUTS = ("logits", "pred_boxes")  # every DETR has these; it may have pred_masks and cross_attention too
END_TO_END_OUTPUTS = ("scores", "labels", "boxes")  # of a file that takes `image`; it may have masks too
UNKNOWN = "?"  # a dimension without a name
# What the arrays of inputs and outputs may hold: what numpy, ONNX and all backends have.
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")


_Self = TypeVar("_Self", bound="Session")
Choose = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # outputs without masks to the wanted queries, (B, Q) bool


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output."""

    name: str
    dtype: str  # numpy's name: "float32", "int64"
    # A string stands for a dimension that varies. The same string means the same size, except UNKNOWN: that is any size.
    shape: tuple[Union[int, str], ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


class Session(ABC):
    """A model that is loaded and ready to run; also a context manager that closes itself.

    Attributes:
        inputs: the arrays that `run` takes, all of them.
        outputs: the arrays that `run` returns.
        metadata: what the file says about itself, or None if it says nothing.
        source: the file, for messages.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Optional[Metadata] = None
    source: str = "the model"
    _opened_in: int  # that opened it

    def __new__(cls: type[_Self], *_: object, **__: object) -> _Self:
        session = super().__new__(cls)
        session._opened_in = os.getpid()
        return session

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the model once.

        Args:
            inputs: an array for each of `self.inputs`, with its dtype and shape.

        Returns:
            An array for each of `self.outputs`. The caller may keep them and write to them.

        Raises:
            InputError: a name, dtype, rank or size does not fit.
            BackendError: the backend failed, the session is closed, or this process was forked off the one that opened it.
        """
        self.require_own_process()
        check_inputs(self.inputs, inputs, self.metadata)
        return self._run(inputs)

    def require_own_process(self) -> None:
        """Refuses a process that was forked off the one that opened the session.

        The threads of a backend do not live on there. PyTorch would wait for its threads for ever.

        Raises:
            BackendError: it is another process.
        """
        if self._opened_in != os.getpid():
            raise BackendError(
                "the session was opened before this process was forked off, and its threads are not here; open the model "
                "in the process that runs it, or start processes with multiprocessing.get_context('spawn')"
            )

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raises the InputError that `run` would raise for arrays that do not fit, and runs nothing."""
        check_inputs(self.inputs, inputs, self.metadata)

    def run_chosen(self, inputs: Mapping[str, np.ndarray], choose: Choose) -> dict[str, np.ndarray]:
        """Runs the model once, with the masks of some queries. That saves work where masks are drawn apart, else none.

        Args:
            inputs: as in `run`.
            choose: says whose masks are wanted, by the other outputs. It may be left uncalled.

        Returns:
            As `run`. The masks of queries that were not chosen mean nothing.

        Raises:
            InputError, BackendError: as in `run`.
        """
        return self.run(inputs)

    @abstractmethod
    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def close(self) -> None:
        """Frees what the session holds. To close it again does nothing."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


def check_inputs(
    specs: tuple[TensorSpec, ...], arrays: Mapping[str, np.ndarray], metadata: Optional[Metadata] = None
) -> None:
    """Checks arrays against what a session declares.

    Raises:
        InputError: names the first input that does not fit and what was expected.
    """
    # Names
    missing = [spec.name for spec in specs if spec.name not in arrays]
    unexpected = sorted(set(arrays) - {spec.name for spec in specs})
    if missing or unexpected:
        raise InputError(
            f"inputs are {', '.join(sorted(arrays)) or 'none'}; expected {', '.join(spec.name for spec in specs)}"
        )

    # Dtype and shape of each array; dimensions of one name must have one size
    sizes: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"{spec.name} is a {type(array).__name__}; expected a numpy array")
        if array.dtype.name != spec.dtype:
            raise InputError(f"{spec.name} is {array.dtype.name}; expected {spec.dtype}")
        if not array.dtype.isnative:
            raise InputError(f"{spec.name} is in the other byte order; convert it: array.astype({spec.dtype!r})")
        if array.ndim != len(spec.shape):
            raise InputError(f"{spec.name} has shape {array.shape}; expected ({', '.join(map(str, spec.shape))})")
        for size, dimension in zip(array.shape, spec.shape):
            if dimension == UNKNOWN:
                continue
            expected = sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension
            if size != expected:
                raise InputError(
                    f"{spec.name} has shape {array.shape}; expected ({', '.join(map(str, spec.shape))})"
                    + (f" with {dimension}={expected}" if isinstance(dimension, str) else "")
                )

    # The ranges of the named dimensions
    for name, size in sizes.items():
        low, high = metadata.ranges.get(name, (1, None)) if metadata else (1, None)
        if size < low or (high is not None and size > high):
            raise InputError(f"{name} is {size}; this model takes {low} to {high if high is not None else 'any'}")


def largest_batch(session: Session, device: str = "cpu") -> Optional[int]:
    """How many pictures one run of a model may have, on a device that may limit it, too; None for any number."""
    if parse_device(device).builds_engines:
        return 1  # ONNX Runtime builds an engine for one picture
    limits = [] if session.metadata is None else [session.metadata.ranges.get("batch", (1, None))[1]]
    limits += [spec.shape[0] for spec in session.inputs if isinstance(spec.shape[0], int)]
    return min((limit for limit in limits if limit is not None), default=None)


def takes_padding(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a model is told which pixels are padding, by a mask or by the sizes of the images."""
    return any(spec.name in ("pixel_mask", "valid_sizes") for spec in inputs)


def as_declared(inputs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Only the arrays that a model takes, in the dtypes that it declares: a file may have float16 inputs."""
    return {spec.name: arrays[spec.name].astype(spec.dtype, copy=False) for spec in inputs if spec.name in arrays}


def is_end_to_end(session: Session) -> bool:
    """Whether a model takes an image as it is and gives detections in pixels."""
    return {spec.name for spec in session.inputs} == {"image"} and {spec.name for spec in session.outputs}.issuperset(
        END_TO_END_OUTPUTS
    )
