"""Parameters that have another shape in a checkpoint than in the model, as a classifier for other classes has."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from detr_export.runtimes.errors import CheckpointError

_LOGGER = logging.getLogger("detr_export.checkpoints")


def with_fresh_parameters(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str, allowed: bool
) -> dict[str, Tensor]:
    """A checkpoint's parameters, with the model's own in place of those that have another shape.

    Which these are is logged as a warning, as transformers does.

    Args:
        model: with fresh weights.
        state_dict: of the checkpoint, under the names that the model has.
        source: the checkpoint's name, for messages.
        allowed: whether another shape is fine.

    Raises:
        CheckpointError: it is not.
    """
    own = model.state_dict()
    fresh = {name: own[name] for name, value in state_dict.items() if name in own and own[name].shape != value.shape}
    if not fresh:
        return dict(state_dict)
    shapes = ", ".join(
        f"{name} {list(state_dict[name].shape)} instead of {list(value.shape)}" for name, value in fresh.items()
    )
    if not allowed:
        raise CheckpointError(
            f"{source} has parameters of another shape: {shapes}; ignore_mismatched_sizes=True draws them afresh"
        )
    _LOGGER.warning("%s: drawn afresh, because the checkpoint has another shape: %s; train the model", source, shapes)
    return {**state_dict, **fresh}
