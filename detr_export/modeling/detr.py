"""`DetrModel` and `DetrForObjectDetection`: DETR end to end (Carion et al. 2020), with the hub's parameter names.

The numbers are those of transformers 4.57's classes of the same names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detr_export.checkpoints.reading import Checkpoint
from detr_export.config import DetrConfig
from detr_export.modeling.backbone import DetrConvModel
from detr_export.modeling.loss import Prediction, detr_loss
from detr_export.modeling.matcher import Target
from detr_export.modeling.outputs import (
    DetrDecoderOutput,
    DetrModelOutput,
    DetrObjectDetectionOutput,
    DetrSegmentationOutput,
    EncoderOutput,
)
from detr_export.modeling.pretrained import DetrPreTrainedModel
from detr_export.modeling.transformer import DetrDecoder, DetrEncoder
from detr_export.runtimes.errors import CheckpointError


@dataclass(frozen=True)
class Pass:
    """What one pass through backbone, encoder and decoder leaves for the heads."""

    features: list[Tensor]  # of the backbone, finest first
    mask: Tensor | None  # (B, h, w) bool, True = real; None when every pixel is real
    projected: Tensor  # (B, d_model, h, w), the encoder's input
    encoded: EncoderOutput
    decoded: DetrDecoderOutput


class DetrModel(DetrPreTrainedModel):
    """Backbone, encoder and decoder, without a head."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.backbone = DetrConvModel(config)
        self.input_projection = nn.Conv2d(self.backbone.conv_encoder.channels[-1], config.d_model, kernel_size=1)
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        self.encoder = DetrEncoder(config)
        self.decoder = DetrDecoder(config)
        self.init_weights()

    @classmethod
    def _own_part(cls, checkpoint: Checkpoint) -> dict[str, Tensor]:
        prefix = {"segmentation": "detr.model.", "detection": "model."}[checkpoint.task]
        own = _below(checkpoint, prefix)
        return own or dict(checkpoint.state_dict)  # a checkpoint of the bare model

    def get_encoder(self) -> DetrEncoder:
        """The transformer's encoder."""
        return self.encoder

    def freeze_backbone(self) -> None:
        """Stops the gradients of every parameter of the backbone."""
        self.backbone.conv_encoder.model.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Lets gradients reach every parameter of the backbone, the stem included."""
        self.backbone.conv_encoder.model.requires_grad_(True)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: EncoderOutput | tuple[Any, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DetrModelOutput | tuple[Any, ...]:
        """Runs the model.

        Args:
            pixel_values: (B, num_channels, H, W) float, normalised.
            pixel_mask: (B, H, W), 1 = real pixel, 0 = padding; all real when None.
            decoder_attention_mask: (B, Q), 0 for queries that no query may attend to.
            encoder_outputs: an encoder's output, or a tuple that starts with its last hidden state (B, L, d_model); the
                encoder is then not run.
            inputs_embeds: (B, L, d_model), in place of the flattened and projected feature map.
            decoder_inputs_embeds: (B, Q, d_model), the queries' content in place of zeros.
            output_attentions, output_hidden_states, return_dict: as in transformers; the configuration's when None.

        (transformers 4.57 accepts the attention mask and both embeddings and ignores them.)

        Returns:
            `last_hidden_state` is (B, Q, d_model). When `return_dict` is False, a tuple of the fields that are set.
        """
        run = self.run(
            pixel_values,
            pixel_mask,
            decoder_attention_mask,
            encoder_outputs,
            inputs_embeds,
            decoder_inputs_embeds,
            output_attentions,
            output_hidden_states,
        )
        if not _or(return_dict, self.config.return_dict):
            return run.decoded.to_tuple() + run.encoded.to_tuple()
        return DetrModelOutput(**_hidden_fields(run), intermediate_hidden_states=run.decoded.intermediate_hidden_states)

    def run(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: EncoderOutput | tuple[Any, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Pass:
        """`forward` with everything that a head may need; arguments as there."""
        attentions = _or(output_attentions, self.config.output_attentions)
        hidden_states = _or(output_hidden_states, self.config.output_hidden_states)
        features, mask, position = self.backbone(pixel_values, pixel_mask)
        projected = self.input_projection(features[-1])
        flat_position = _flatten(position)
        flat_mask = None if mask is None else mask.flatten(1)
        if encoder_outputs is None:
            embeddings = _flatten(projected) if inputs_embeds is None else inputs_embeds
            encoded = self.encoder(embeddings, flat_mask, flat_position, attentions, hidden_states)
        elif isinstance(encoder_outputs, EncoderOutput):
            encoded = encoder_outputs
        else:
            encoded = EncoderOutput(*encoder_outputs[:3])
        query_position = self.query_position_embeddings.weight[None].expand(pixel_values.shape[0], -1, -1)
        decoded = self.decoder(
            torch.zeros_like(query_position) if decoder_inputs_embeds is None else decoder_inputs_embeds,
            decoder_attention_mask,
            encoded.last_hidden_state,
            flat_mask,
            flat_position,
            query_position,
            attentions,
            hidden_states,
        )
        return Pass(features, mask, projected, encoded, decoded)


class DetrMLPPredictionHead(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        sizes = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class DetrWithHeads(DetrPreTrainedModel):
    """What the detection and the segmentation model share: a `forward` made of `base`, `predict` and the loss."""

    output_type: type[DetrObjectDetectionOutput] | type[DetrSegmentationOutput]

    @property
    def detector(self) -> DetrForObjectDetection:
        """The part that classifies and places boxes."""
        raise NotImplementedError

    @property
    def base(self) -> DetrModel:
        """The model below the heads."""
        return self.detector.model

    def predict(self, run: Pass) -> Prediction:
        """What the heads make of a pass."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: EncoderOutput | tuple[Any, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Sequence[Target] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DetrObjectDetectionOutput | DetrSegmentationOutput | tuple[Any, ...]:
        """Runs the model; arguments as in `DetrModel.forward`, and:

        Args:
            labels: for each image `class_labels` (N,) int64, `boxes` (N, 4), (center_x, center_y, width, height) in
                [0, 1], and for a segmentation model `masks` (N, H, W); with them the output holds the loss and its terms.

        Returns:
            `logits` (B, Q, num_labels + 1), `pred_boxes` (B, Q, 4), (center_x, center_y, width, height) in [0, 1] of the
            image without its padding, and of a segmentation model `pred_masks` (B, Q, H/4, W/4) logits. When `return_dict`
            is False, a tuple of the fields that are set, in transformers' order.

        Raises:
            InputError: the labels do not fit the batch.
        """
        run = self.base.run(
            pixel_values,
            pixel_mask,
            decoder_attention_mask,
            encoder_outputs,
            inputs_embeds,
            decoder_inputs_embeds,
            output_attentions,
            output_hidden_states,
        )
        prediction = self.predict(run)
        loss = terms = None
        auxiliary: list[Prediction] = []
        if labels is not None:
            auxiliary = self.detector.auxiliary_predictions(run.decoded)
            loss, terms = detr_loss(self.config, prediction, auxiliary, labels)
        layers: list[Any] = [{"logits": layer.logits, "pred_boxes": layer.pred_boxes} for layer in auxiliary]
        masks: dict[str, Any] = {} if prediction.pred_masks is None else {"pred_masks": prediction.pred_masks}
        if _or(return_dict, self.config.return_dict):
            return self.output_type(
                loss=loss,
                loss_dict=terms,
                logits=prediction.logits,
                pred_boxes=prediction.pred_boxes,
                **masks,
                auxiliary_outputs=layers or None,
                **_hidden_fields(run),
            )
        heads = (prediction.logits, prediction.pred_boxes, *masks.values(), *layers)
        losses = () if loss is None else (loss, terms)
        return losses + heads + run.decoded.to_tuple() + run.encoded.to_tuple()


class DetrForObjectDetection(DetrWithHeads):
    """`DetrModel` with a class and a box for each query."""

    output_type = DetrObjectDetectionOutput

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.model = DetrModel(config)
        self.class_labels_classifier = nn.Linear(config.d_model, config.num_labels + 1)  # the last is "no object"
        self.bbox_predictor = DetrMLPPredictionHead(config.d_model, config.d_model, 4, 3)
        self.init_weights()

    @classmethod
    def _own_part(cls, checkpoint: Checkpoint) -> dict[str, Tensor]:
        if checkpoint.task == "segmentation":
            return _below(checkpoint, "detr.")
        if not any(name.startswith("class_labels_classifier.") for name in checkpoint.state_dict):
            raise CheckpointError(
                f"{checkpoint.source} has no detection head (class_labels_classifier, bbox_predictor); "
                "expected a checkpoint of DetrForObjectDetection"
            )
        return dict(checkpoint.state_dict)

    def predict(self, run: Pass) -> Prediction:
        """What the heads make of a pass."""
        assert run.decoded.last_hidden_state is not None
        return Prediction(*self.heads(run.decoded.last_hidden_state))

    @property
    def detector(self) -> DetrForObjectDetection:
        """The model itself."""
        return self

    def heads(self, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (..., Q, d_model) to logits (..., Q, num_labels + 1) and boxes (..., Q, 4)."""
        return self.class_labels_classifier(hidden_state), self.bbox_predictor(hidden_state).sigmoid()

    def auxiliary_predictions(self, decoded: DetrDecoderOutput) -> list[Prediction]:
        """The predictions of the decoder layers before the last one; empty without auxiliary loss."""
        if decoded.intermediate_hidden_states is None:
            return []
        logits, boxes = self.heads(decoded.intermediate_hidden_states)
        return [Prediction(*layer) for layer in zip(logits[:-1], boxes[:-1], strict=True)]

    def earlier_predictions(self, decoded: DetrDecoderOutput) -> list[Prediction]:
        """What the heads make of each decoder layer before the last one, of a pass that kept its hidden states."""
        assert decoded.hidden_states is not None
        norm = self.model.decoder.layernorm
        return [Prediction(*self.heads(norm(state))) for state in decoded.hidden_states[1:-1]]


def _hidden_fields(run: Pass) -> dict[str, Any]:
    """The fields that all outputs share."""
    return {
        "last_hidden_state": run.decoded.last_hidden_state,
        "decoder_hidden_states": run.decoded.hidden_states,
        "decoder_attentions": run.decoded.attentions,
        "cross_attentions": run.decoded.cross_attentions,
        "encoder_last_hidden_state": run.encoded.last_hidden_state,
        "encoder_hidden_states": run.encoded.hidden_states,
        "encoder_attentions": run.encoded.attentions,
    }


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in checkpoint.state_dict.items() if name.startswith(prefix)}


def _flatten(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C)."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value
