"""The activation functions that a configuration can name, under transformers' names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from detr_export.runtimes.errors import CheckpointError

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation that transformers calls `name`.

    Raises:
        CheckpointError: the name is not one of those known here.
    """
    try:
        return _ACTIVATIONS[name]()
    except KeyError:
        raise CheckpointError(
            f"activation {name!r:.40} is not supported; known: {', '.join(sorted(_ACTIVATIONS))}"
        ) from None
