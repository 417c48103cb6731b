"""DETR's transformer: an encoder and a decoder whose attention adds positions to queries and keys only.

The batch always comes first: (B, length, d_model). One thing differs from facebookresearch/detr `models/transformer.py`, as
it does in transformers: there are four separate projections instead of one packed `in_proj_weight`.

DETR normalises the sum of shortcut and branch (post-norm). Table Transformer, and DETR trained with `--pre_norm`, normalise
the input of the branch instead (pre-norm); then the shortcuts run through the encoder without a norm, and one follows at its
end.

A mask adds the dtype's most negative finite number to the scores, never -inf. So a row that is completely masked becomes an
average, not NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from detr_export.config import DetrConfig
from detr_export.modeling.activations import activation
from detr_export.modeling.outputs import DetrDecoderOutput, EncoderOutput


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns a mask (B, L), nonzero = attend, into a bias (B, 1, 1, L) for scores (B, heads, queries, L)."""
    real = mask if mask.dtype == torch.bool else mask != 0
    return (1 - real[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


class DetrAttention(nn.Module):
    """Multi-head attention. Positions are added to the inputs of the query and key projections, not to the value's."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scaling = (embed_dim // num_heads) ** -0.5
        self.dropout = dropout
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        hidden_states: Tensor,
        position: Tensor,
        bias: Tensor | None,
        memory: Tensor | None = None,
        memory_position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends from `hidden_states` to `memory`, or to itself when there is none.

        Args:
            hidden_states, position: (B, T, embed_dim).
            bias: added to the scores, broadcast to (B, heads, T, S).
            memory, memory_position: (B, S, embed_dim).

        Returns:
            (B, T, embed_dim), and the attention weights (B, heads, T, S) before dropout.
        """
        queries = hidden_states + position
        values = hidden_states if memory is None else memory
        keys = queries if memory is None or memory_position is None else memory + memory_position
        query = self._split_heads(self.q_proj(queries) * self.scaling)
        key = self._split_heads(self.k_proj(keys))
        value = self._split_heads(self.v_proj(values))
        scores = query @ key.transpose(2, 3)
        if bias is not None:
            scores = scores + bias
        weights = functional.softmax(scores, dim=-1)
        context = functional.dropout(weights, p=self.dropout, training=self.training) @ value
        return self.out_proj(context.transpose(1, 2).flatten(2)), weights

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class ResidualLayer(nn.Module):
    """What encoder and decoder layers share: residual branches, and the feed-forward network.

    A base class, not a submodule: on the hub `fc1` and `fc2` belong to the layer.
    """

    def _init_feed_forward(self, config: DetrConfig, width: int) -> None:
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation_fn = activation(config.activation_function)
        self.fc1 = nn.Linear(config.d_model, width)
        self.fc2 = nn.Linear(width, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def _branch_input(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.pre_norm else x

    def _add_branch(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        total = x + functional.dropout(branch, p=self.dropout, training=self.training)
        return total if self.pre_norm else norm(total)

    def _feed_forward(self, x: Tensor) -> Tensor:
        inner = self.activation_fn(self.fc1(self._branch_input(x, self.final_layer_norm)))
        inner = functional.dropout(inner, p=self.activation_dropout, training=self.training)
        return self._add_branch(x, self.fc2(inner), self.final_layer_norm)


class DetrEncoderLayer(ResidualLayer):
    """Self-attention over the feature map, then the feed-forward network."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.self_attn = DetrAttention(config.d_model, config.encoder_attention_heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self._init_feed_forward(config, config.encoder_ffn_dim)

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps (B, L, d_model) to the same shape, with the attention weights (B, heads, L, L)."""
        attended, weights = self.self_attn(self._branch_input(x, self.self_attn_layer_norm), position, bias)
        x = self._add_branch(x, attended, self.self_attn_layer_norm)
        return self._feed_forward(x), weights


class DetrDecoderLayer(ResidualLayer):
    """Self-attention over the queries, cross-attention to the encoder's output, then the feed-forward network."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.self_attn = DetrAttention(config.d_model, config.decoder_attention_heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = DetrAttention(config.d_model, config.decoder_attention_heads, config.attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self._init_feed_forward(config, config.decoder_ffn_dim)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        bias: Tensor | None,
        memory: Tensor,
        memory_position: Tensor,
        memory_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, Q, d_model) to the same shape, with the weights (B, heads, Q, Q) and (B, heads, Q, L)."""
        attended, self_weights = self.self_attn(self._branch_input(x, self.self_attn_layer_norm), query_position, bias)
        x = self._add_branch(x, attended, self.self_attn_layer_norm)
        queries = self._branch_input(x, self.encoder_attn_layer_norm)
        attended, cross_weights = self.encoder_attn(queries, query_position, memory_bias, memory, memory_position)
        x = self._add_branch(x, attended, self.encoder_attn_layer_norm)
        return self._feed_forward(x), self_weights, cross_weights


class LayerStack(nn.Module):
    """What encoder and decoder share: how a layer is run, or left out."""

    layerdrop: float
    # Arguments of `torch.utils.checkpoint`. With them, training keeps what goes into a layer and computes the rest again in
    # the backward pass (Chen et al. 2016); None keeps everything.
    checkpointing: dict[str, Any] | None = None

    def _skipped(self) -> bool:
        """Layer drop (Fan et al. 2019): in training each layer is left out with probability `layerdrop`."""
        return self.training and bool(torch.rand([]) < self.layerdrop)

    def _run(self, layer: nn.Module, *inputs: Tensor | None) -> Any:
        if self.checkpointing is None or not (self.training and torch.is_grad_enabled()):
            return layer(*inputs)
        return checkpoint(layer, *inputs, **self.checkpointing)


class DetrEncoder(LayerStack):
    """A stack of encoder layers; with pre-norm layers, a norm ends it."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.layerdrop = config.encoder_layerdrop
        self.layers = nn.ModuleList(DetrEncoderLayer(config) for _ in range(config.encoder_layers))
        self.layernorm = nn.LayerNorm(config.d_model) if config.pre_norm else None

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position: Tensor,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Encodes a flattened feature map.

        Args:
            inputs_embeds, position: (B, L, d_model).
            attention_mask: (B, L), nonzero = real.
            output_attentions, output_hidden_states: which optional fields of the output to fill. The attentions of a
                layer that layer drop skipped are None.
        """
        x = functional.dropout(inputs_embeds, p=self.dropout, training=self.training)
        bias = None if attention_mask is None else attention_bias(attention_mask, x.dtype)
        states: list[Tensor] = [x]
        attentions: list[Tensor | None] = []
        for layer in self.layers:
            weights = None
            if not self._skipped():
                x, weights = self._run(layer, x, position, bias)
            states.append(x)
            attentions.append(weights)
        if self.layernorm is not None:
            x = self.layernorm(x)
        return EncoderOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class DetrDecoder(LayerStack):
    """A stack of decoder layers; its final norm is also applied to the intermediate outputs for the auxiliary loss."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layerdrop = config.decoder_layerdrop
        self.auxiliary_loss = config.auxiliary_loss
        self.layers = nn.ModuleList(DetrDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layernorm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor | None,
        memory_position: Tensor,
        query_position: Tensor,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> DetrDecoderOutput:
        """Decodes the queries.

        Args:
            inputs_embeds, query_position: (B, Q, d_model).
            attention_mask: (B, Q), nonzero = this query may be attended to.
            memory, memory_position: the encoder's output and positions, (B, L, d_model).
            memory_mask: (B, L), nonzero = real.
            output_attentions, output_hidden_states: which optional fields of the output to fill.
        """
        x = inputs_embeds
        bias = None if attention_mask is None else attention_bias(attention_mask, x.dtype)
        memory_bias = None if memory_mask is None else attention_bias(memory_mask, x.dtype)
        states: list[Tensor] = []
        self_attentions: list[Tensor] = []
        cross_attentions: list[Tensor] = []
        intermediate: list[Tensor] = []
        for layer in self.layers:
            states.append(x)
            if self._skipped():
                continue
            x, self_weights, cross_weights = self._run(layer, x, query_position, bias, memory, memory_position, memory_bias)
            if self.auxiliary_loss:
                # As transformers does it: the normed output also goes into the next layer.
                x = self.layernorm(x)
                intermediate.append(x)
            self_attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        x = self.layernorm(x)
        states.append(x)
        return DetrDecoderOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(self_attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions else None,
            intermediate_hidden_states=torch.stack(intermediate) if self.auxiliary_loss else None,
        )
