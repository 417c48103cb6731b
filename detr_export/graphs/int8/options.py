"""How a graph becomes int8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detr_export.graphs.int8.layers import DEFAULT_SCOPE, SCOPES
from detr_export.runtimes.errors import ArtifactError, InputError

METHODS = ("minmax", "entropy", "percentile", "mse")
DEFAULT_METHOD = "percentile"  # of the four it costs the demo least, see docs/export.md
FLOATS = ("fp32", "fp16")
FIRST_OPSETS = {"fp32": 18, "fp16": 19}  # 18: nodes name their modules; 19: scales may be fp16


@dataclass(frozen=True)
class Int8Options:
    """How a graph becomes int8."""

    pictures: tuple[Path, ...]  # to calibrate on, like those that the model will see; from `pictures.find_pictures`
    method: str = DEFAULT_METHOD  # how the scale follows from the values, one of `METHODS`
    scope: str = DEFAULT_SCOPE  # which layers, one of `layers.SCOPES`
    float_precision: str = "fp32"  # or "fp16": what the rest computes in
    sensitivity: bool = False  # also measure what each layer alone costs


def check_int8_options(options: Int8Options, opset: int) -> None:
    """Refuses what cannot be done.

    Raises:
        InputError: an option has an unknown value, or there are no pictures.
        ArtifactError: the opset is too old.
    """
    if not options.pictures:
        raise InputError("there are no pictures to calibrate on; give some")
    for name, value, known in (
        ("calibration_method", options.method, METHODS),
        ("int8_scope", options.scope, tuple(SCOPES)),
        ("int8_float", options.float_precision, FLOATS),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    first = FIRST_OPSETS[options.float_precision]
    if opset < first:
        raise ArtifactError(
            f"opset is {opset}; int8 with {options.float_precision} around it needs {first} or later, add --opset {first}"
        )
