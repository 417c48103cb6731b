"""What the models return: dictionaries whose entries are attributes and have positions, as transformers' outputs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from torch import Tensor


@dataclass
class ModelOutput(dict[str, Any]):
    """Fields that are None do not count: they have no position and no key, and `to_tuple()` leaves them out.

    A mapping in the place of the first field is taken for the fields themselves; it may have keys of its own. transformers'
    pipelines copy an output in this way, with the size of the picture as one more key.
    """

    def __post_init__(self) -> None:
        first = next((item.name for item in fields(self)), None)
        given = None if first is None else getattr(self, first)
        if isinstance(given, Mapping):
            self[str(first)] = None
            for name, value in given.items():
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are set, in the order of the fields."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, name: str, value: Any) -> None:
        if value is None:
            super().pop(name, None)
        else:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def _refuse(self, *arguments: Any, **options: Any) -> NoReturn:
        raise TypeError("an output is changed by its attributes or keys alone: outputs.loss = ..., outputs['loss'] = ...")

    __delitem__ = pop = popitem = clear = update = setdefault = _refuse


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
