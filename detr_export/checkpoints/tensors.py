"""What the tensors of a checkpoint may be: plain ones, as many and as large as the limits and the configuration allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detr_export.config import DetrConfig
from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.limits import require_at_most

MAX_RANK = 8
_COUNTER = ".num_batches_tracked"  # of a batch norm; no parameter
_NAME, _LONGEST_NAME = 200, 1000  # characters of a name that is shown as it is, and of any name


def is_counter(name: str) -> bool:
    """Whether it is the name of a batch norm's counter, which no model here has."""
    return name.endswith(_COUNTER)


def require_plain(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors that are more than numbers in memory, or say that they are larger than their memory is.

    Such a tensor takes its full size as soon as it is copied: a kilobyte of a file becomes a terabyte.

    Raises:
        CheckpointError: names the tensor.
    """
    for name, value in tensors.items():
        problem = _problem(value)
        if problem:
            raise CheckpointError(f"{source}: {named(name)} {problem}; expected a plain tensor, as torch.save writes it")


def require_room(shapes: Mapping[str, Sequence[int]], source: str, config: DetrConfig | None = None) -> None:
    """Refuses more tensors or numbers than the limits allow, or than a model of the configuration has.

    Args:
        shapes: of the tensors.
        source: the file or checkpoint, for messages.
        config: None where it is not known yet.

    Raises:
        CheckpointError: there are too many.
    """
    require_at_most("tensors", len(shapes), f"the number of tensors of {source}", CheckpointError)
    long = next((name for name in shapes if len(name) > _LONGEST_NAME), None)
    if long is not None:
        raise CheckpointError(
            f"{source} has {named(long)}, a name of {len(long)} characters; expected at most {_LONGEST_NAME}"
        )
    numbers = sum(math.prod(shape) for name, shape in shapes.items() if not is_counter(name))
    what = f"the size of the tensors of {source} in bytes, in float32,"
    require_at_most("checkpoint_bytes", 4 * numbers, what, CheckpointError)
    if config is not None and config.is_known_resnet and numbers > config.most_parameters:
        raise CheckpointError(
            f"the parameters of {source} hold {numbers} numbers; "
            f"expected at most {config.most_parameters}, which is more than a model of its configuration has"
        )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Their shapes by their names."""
    return {name: value.shape for name, value in tensors.items()}


def named(name: str) -> str:
    """A tensor's name for messages: on one line, and not long."""
    return name if name.isprintable() and len(name) <= _NAME else shown(name)


def _problem(value: Tensor) -> str:
    """What is not plain about a tensor; empty if it is."""
    if type(value) not in (Tensor, nn.Parameter) or value.device.type != "cpu":
        return f"is a {type(value).__name__} on the device {value.device.type}"
    if value.is_quantized or value.layout != torch.strided:
        return f"is {'quantised' if value.is_quantized else 'sparse'}"
    if value.is_complex():
        return "has complex numbers"
    if value.dim() > MAX_RANK:
        return f"has {value.dim()} dimensions"
    sizes = zip(value.shape, value.stride(), strict=True)
    if value.numel() * value.element_size() > value.untyped_storage().nbytes() or any(n > 1 and not s for n, s in sizes):
        return f"is expanded: its shape is {list(value.shape)}, and {value.untyped_storage().nbytes()} bytes are stored"
    return ""
