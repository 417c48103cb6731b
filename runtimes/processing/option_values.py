"""Options of an image processor that are flags or numbers: what they may be, in a document and in Python.

NumPy's numbers and arrays are taken as well, and no option is changed. The ranges are far around what models are trained
with; within them no pixel becomes infinite or NaN, and the scores neither.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import OptionError

FACTORS = (1e-9, 1e4)  # of rescale_factor: 1 / 255 mostly
MEANS = (-1e6, 1e6)
DEVIATIONS = (1e-4, 1e6)
_CHANNELS = 64  # values of a mean, at most


def as_flag(value: Any, name: str) -> Any:
    """True, False, or None, which turns a step off in a document. Raises OptionError for anything else."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return value
    raise OptionError(f"{name} is {shown(value)}; expected true or false")


def as_number(value: Any, name: str, bounds: tuple[float, float]) -> Any:
    """`value` as it is, if it is one number within bounds, or None. Raises OptionError for anything else."""
    return value if value is None or _in_bounds(value, bounds) else _refuse(value, name, "a number", bounds)


def as_channels(value: Any, name: str, bounds: tuple[float, float]) -> Any:
    """`value` as it is, if it is None, a number, or numbers for channels, which are within bounds; an iterator as a list.

    Raises OptionError for anything else.
    """
    if value is None or _in_bounds(value, bounds):
        return value
    scalar = isinstance(value, np.ndarray) and value.ndim == 0
    if scalar or isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        _refuse(value, name, "a number, or a list of numbers,", bounds)
    values = value if isinstance(value, (list, tuple, np.ndarray)) else list(value)
    if not 1 <= len(values) <= _CHANNELS:
        raise OptionError(f"{name} is {shown(value)}; expected a number, or one for each channel")
    for index, item in enumerate(values):
        if not _in_bounds(item, bounds):
            _refuse(item, f"{name}[{index}]", "a number", bounds)
    return values


def as_count(value: Any, name: str) -> int:
    """`value` as a positive integer of Python. Raises OptionError for anything else."""
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise OptionError(f"{name} is {shown(value)}; expected a positive integer")
    return number


def _in_bounds(value: Any, bounds: tuple[float, float]) -> bool:
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return False
    if isinstance(value, (int, float)):
        return bounds[0] <= value <= bounds[1]
    try:
        array = np.asarray(value)
        return array.ndim == 0 and array.dtype.kind in "iuf" and bounds[0] <= float(array) <= bounds[1]
    except (TypeError, ValueError, RuntimeError):  # what another library's object raises
        return False


def _refuse(value: Any, name: str, expected: str, bounds: tuple[float, float]) -> None:
    raise OptionError(f"{name} is {shown(value)}; expected {expected} from {bounds[0]:g} to {bounds[1]:g}")
