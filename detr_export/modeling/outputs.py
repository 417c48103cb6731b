"""What the models return: dataclasses that also answer by name and by position, as transformers' outputs do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass
class ModelOutput:
    """Fields that are None do not count: they have no position and no key, and `to_tuple()` leaves them out."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are set, in the order of the fields."""
        return tuple(self.values())

    def keys(self) -> list[str]:
        """Names of the fields that are set."""
        return [item.name for item in fields(self) if getattr(self, item.name) is not None]

    def values(self) -> list[Any]:
        """Values of the fields that are set."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that are set."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]


@dataclass
class EncoderOutput(ModelOutput):
    """Output of the transformer's encoder over L = h * w positions."""

    last_hidden_state: Tensor | None = None  # (B, L, d_model)
    hidden_states: tuple[Tensor, ...] | None = None  # encoder_layers + 1 times (B, L, d_model)
    attentions: tuple[Tensor | None, ...] | None = None  # encoder_layers times (B, heads, L, L)


@dataclass
class DetrDecoderOutput(ModelOutput):
    """Output of the transformer's decoder over Q queries."""

    last_hidden_state: Tensor | None = None  # (B, Q, d_model)
    hidden_states: tuple[Tensor, ...] | None = None  # decoder_layers + 1 times (B, Q, d_model)
    attentions: tuple[Tensor, ...] | None = None  # decoder_layers times (B, heads, Q, Q)
    cross_attentions: tuple[Tensor, ...] | None = None  # decoder_layers times (B, heads, Q, L)
    intermediate_hidden_states: Tensor | None = None  # (decoder_layers, B, Q, d_model), with auxiliary_loss


@dataclass
class DetrModelOutput(ModelOutput):
    """Output of `DetrModel`; shapes as in `DetrDecoderOutput` and `EncoderOutput`."""

    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor | None, ...] | None = None
    intermediate_hidden_states: Tensor | None = None


@dataclass
class DetrObjectDetectionOutput(ModelOutput):
    """Output of `DetrForObjectDetection`; shapes of the rest as in `DetrModelOutput`."""

    loss: Tensor | None = None  # scalar, when labels were given
    loss_dict: dict[str, Tensor] | None = None  # the terms behind it, unweighted
    logits: Tensor | None = None  # (B, Q, num_labels + 1), the last class is "no object"
    pred_boxes: Tensor | None = None  # (B, Q, 4), (center_x, center_y, width, height) in [0, 1] of the image without padding
    auxiliary_outputs: list[dict[str, Tensor]] | None = None  # logits and pred_boxes of the earlier decoder layers
    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor | None, ...] | None = None


@dataclass
class DetrSegmentationOutput(ModelOutput):
    """Output of `DetrForSegmentation`: that of `DetrForObjectDetection` and the masks."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None  # (B, Q, H/4, W/4) logits
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor | None, ...] | None = None
