"""`DetrModel` and `DetrForObjectDetection`: DETR end to end (Carion et al. 2020), with the hub's parameter names.

The numbers are those of transformers 4.57's classes of the same names.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from detr_export.config import DetrConfig
from detr_export.modeling.backbone import DetrConvModel
from detr_export.modeling.outputs import DetrModelOutput, DetrObjectDetectionOutput
from detr_export.modeling.position_encoding import DetrLearnedPositionEmbedding
from detr_export.modeling.transformer import DetrDecoder, DetrEncoder


class DetrPreTrainedModel(nn.Module):
    """What the models share: a configuration and how fresh weights are drawn."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config

    def init_weights(self) -> None:
        """Draws fresh weights as transformers does: normal with `init_std`, biases zero, learned positions uniform.

        The backbone's convolutions get the He initialisation that they are published with.
        """
        for name, module in self.named_modules():
            if isinstance(module, DetrLearnedPositionEmbedding):
                nn.init.uniform_(module.row_embeddings.weight)
                nn.init.uniform_(module.column_embeddings.weight)
            elif isinstance(module, nn.Conv2d) and "conv_encoder" in name:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding) and "position_embedding." not in name:
                nn.init.normal_(module.weight, std=self.config.init_std)


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

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetrModelOutput:
        """Runs the model.

        Args:
            pixel_values: (B, num_channels, H, W) float, normalised.
            pixel_mask: (B, H, W), 1 = real pixel, 0 = padding; all real when None.

        Returns:
            `last_hidden_state` is (B, Q, d_model).
        """
        batch = pixel_values.shape[0]
        features, mask, position = self.backbone(pixel_values, pixel_mask)
        projected = self.input_projection(features[-1])
        flat_position = _flatten(position)
        flat_mask = None if pixel_mask is None else mask.flatten(1)
        encoded = self.encoder(_flatten(projected), flat_mask, flat_position)
        query_position = self.query_position_embeddings.weight[None].expand(batch, -1, -1)
        decoded = self.decoder(
            torch.zeros_like(query_position), None, encoded.last_hidden_state, flat_mask, flat_position, query_position
        )
        return DetrModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            encoder_last_hidden_state=encoded.last_hidden_state,
            intermediate_hidden_states=decoded.intermediate_hidden_states,
        )


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


class DetrForObjectDetection(DetrPreTrainedModel):
    """`DetrModel` with a class and a box for each query."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.model = DetrModel(config)
        self.class_labels_classifier = nn.Linear(config.d_model, config.num_labels + 1)  # the last is "no object"
        self.bbox_predictor = DetrMLPPredictionHead(config.d_model, config.d_model, 4, 3)
        self.init_weights()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetrObjectDetectionOutput:
        """Runs the model; arguments as in `DetrModel.forward`.

        Returns:
            `logits` (B, Q, num_labels + 1) and `pred_boxes` (B, Q, 4), (center_x, center_y, width, height) in [0, 1] of
            the image without its padding.
        """
        outputs = self.model(pixel_values, pixel_mask)
        return DetrObjectDetectionOutput(
            logits=self.class_labels_classifier(outputs.last_hidden_state),
            pred_boxes=self.bbox_predictor(outputs.last_hidden_state).sigmoid(),
            last_hidden_state=outputs.last_hidden_state,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
        )


def _flatten(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C)."""
    return feature_map.flatten(2).permute(0, 2, 1)
