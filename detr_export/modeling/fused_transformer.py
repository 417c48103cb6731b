"""DETR's transformer as exported files compute it: the function of `transformer`, in fewer and larger products.

These identities make it; none changes a result by more than rounding:

- Attention adds positions to what queries and keys are made of: (x + position) W is x W + position W. So queries, keys and
  values of an encoder layer are one product of x, and the positions' part of all encoder layers is one product, too.
- Keys and values of all cross-attentions are one product of the encoder's output.
- The scale of the scores goes into the weights of the queries.
- The bias of the keys adds the same to all scores of a query, which softmax takes out again. So keys need none.
- Attention weights add up to 1, so the bias of the values passes through them, into the bias of the output projection.
- The queries' positions are parameters. The first self-attention sees nothing else, because the decoder starts from zeros.
  So it is a constant, and so are the queries of the first cross-attention.

The shapes are those that TensorRT reads without copies: one kernel divides a product into queries, keys and values for its
fused attention, and the decoder works in (Q, B, d_model), as facebookresearch/detr does. docs/export.md has the figures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from detr_export.modeling.detr import DetrModel
from detr_export.modeling.outputs import DetrDecoderOutput, EncoderOutput
from detr_export.modeling.transformer import (
    DetrAttention,
    DetrDecoder,
    DetrDecoderLayer,
    DetrEncoder,
    DetrEncoderLayer,
    ResidualLayer,
    attention_bias,
)


@torch.no_grad()
def fuse(model: DetrModel) -> None:
    """Puts a model into this form, and into eval mode. It then takes no embeddings, and gives no hidden states.

    New weights are computed in float64 and rounded once.
    """
    position = model.query_position_embeddings.weight
    dtype = position.dtype
    fused: dict[str, nn.Module] = {"input_projection": PointwiseProjection(model.input_projection.double())}
    if model.encoder.layers:  # a DETR's encoder may have none, and then there is nothing to fuse
        fused["encoder"] = FusedEncoder(model.encoder.double())
    fused["decoder"] = FusedDecoder(model.decoder.double(), position.double())
    for name, module in fused.items():
        setattr(model, name, module.to(dtype))
    model.eval()


class PointwiseProjection(nn.Module):
    """A convolution of kernel size 1 as a product with the channels last, which is how the encoder reads it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert convolution.bias is not None
        self.weight = _constant(convolution.weight[:, :, 0, 0].T)
        self.bias = _constant(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, d_model, h, w)."""
        projected = x.permute(0, 2, 3, 1).flatten(1, 2) @ self.weight + self.bias
        return projected.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class _SelfAttention(nn.Module):
    """Self-attention whose queries, keys and values are one product.

    Args:
        attention: the attention.
        batch_dim: which dimension of (B, T, d_model) or (T, B, d_model) is the batch.
    """

    def __init__(self, attention: DetrAttention, batch_dim: int) -> None:
        super().__init__()
        weights = [attention.q_proj.weight * attention.scaling, attention.k_proj.weight, attention.v_proj.weight]
        self.weight = _constant(torch.cat(weights).T)
        self.out_proj = _output_projection(attention)
        self.num_heads = attention.num_heads
        self.batch_dim = batch_dim

    def forward(self, x: Tensor, shift: Tensor, bias: Tensor | None) -> Tensor:
        """Attends within x.

        Args:
            x: (B, T, d_model) or (T, B, d_model), as `batch_dim` says; the result has the same shape.
            shift: broadcasts to x but for its width, 2 d_model: the part of queries and keys that x does not make.
            bias: added to the scores, broadcast to (B, heads, T, T).
        """
        # Axes are divided before the sum: TensorRT-RTX 1.7 fails to build a sum with a constant that is divided after it.
        shift = shift.unflatten(-1, (2, self.num_heads, -1))
        zeros = torch.zeros((), dtype=x.dtype, device=x.device).expand(*shift.shape[:2], 1, *shift.shape[3:])
        mixed = (x @ self.weight).unflatten(-1, (3, self.num_heads, -1)) + torch.cat((shift, zeros), dim=2)
        order = (0, 2, 1, 3) if self.batch_dim == 0 else (1, 2, 0, 3)  # to (B, heads, T, head size)
        query, key, value = (mixed.select(2, index).permute(order) for index in range(3))
        context, _ = _attend(query, key, value, bias)
        back = order if self.batch_dim == 0 else (2, 0, 1, 3)
        return self.out_proj(context.permute(back).flatten(2))


class _Layer(ResidualLayer):
    """A layer that takes over the feed-forward network of another, without dropout."""

    def __init__(self, layer: ResidualLayer) -> None:
        super().__init__()
        self.pre_norm, self.activation_fn = layer.pre_norm, layer.activation_fn
        self.dropout = self.activation_dropout = 0.0  # constants are computed before the model is put into eval mode
        self.fc1, self.fc2, self.final_layer_norm = layer.fc1, layer.fc2, layer.final_layer_norm


class _EncoderLayer(_Layer):
    def __init__(self, layer: DetrEncoderLayer) -> None:
        super().__init__(layer)
        self.self_attn = _SelfAttention(layer.self_attn, batch_dim=0)
        self.self_attn_layer_norm = layer.self_attn_layer_norm

    def forward(self, x: Tensor, shift: Tensor, bias: Tensor | None) -> Tensor:
        attended = self.self_attn(self._branch_input(x, self.self_attn_layer_norm), shift, bias)
        return self._feed_forward(self._add_branch(x, attended, self.self_attn_layer_norm))


class FusedEncoder(nn.Module):
    """A `DetrEncoder` in eval mode, without attentions and hidden states."""

    def __init__(self, encoder: DetrEncoder) -> None:
        super().__init__()
        attentions = [layer.self_attn for layer in encoder.layers if isinstance(layer, DetrEncoderLayer)]
        weights, biases = zip(*map(_position_weight, attentions), strict=True)
        self.position_weight = _constant(torch.stack(weights)[:, None])  # (layers, 1, d_model, 2 d_model)
        self.position_bias = _constant(torch.stack(biases)[:, None, None])
        self.layers = nn.ModuleList(_EncoderLayer(layer) for layer in encoder.layers if isinstance(layer, DetrEncoderLayer))
        self.layernorm = encoder.layernorm

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position: Tensor,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """As `DetrEncoder.forward`."""
        x = inputs_embeds
        bias = None if attention_mask is None else attention_bias(attention_mask, x.dtype)
        shifts = position[None] @ self.position_weight + self.position_bias
        for layer, shift in zip(self.layers, _parts(shifts, len(self.layers), dim=0), strict=True):
            x = layer(x, shift.squeeze(0), bias)
        return EncoderOutput(last_hidden_state=x if self.layernorm is None else self.layernorm(x))


class _QueryProjection(nn.Module):
    """The queries of a cross-attention, a module of its own so that exported nodes are named after it."""

    def __init__(self, attention: DetrAttention, query_position: Tensor) -> None:
        super().__init__()
        self.weight = _constant((attention.q_proj.weight * attention.scaling).T)
        self.bias = _constant(attention.q_proj.bias * attention.scaling)
        self.position = _constant(query_position[:, None])  # (Q, 1, d_model)
        self.head_size = query_position.shape[1] // attention.num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Maps (Q, B, d_model) to (B * heads, Q, head size)."""
        query = (x + self.position) @ self.weight + self.bias
        return query.reshape(len(query), -1, self.head_size).transpose(0, 1)


class _CrossAttention(nn.Module):
    """Cross-attention to keys and values that are given, from queries that `q_proj` makes."""

    def __init__(self, attention: DetrAttention, query_position: Tensor) -> None:
        super().__init__()
        self.q_proj = _QueryProjection(attention, query_position)
        self.out_proj = _output_projection(attention)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps (B * heads, Q, head size) and keys and values (B * heads, L, head size) to an output and weights.

        The output is (Q, B, d_model), the weights are (B * heads, Q, L).
        """
        context, weights = _attend(query, key, value, bias)
        context = context.transpose(0, 1)
        return self.out_proj(context.reshape(len(context), -1, self.out_proj.in_features)), weights


class _DecoderLayer(_Layer):
    def __init__(self, layer: DetrDecoderLayer, query_position: Tensor) -> None:
        super().__init__(layer)
        weight, bias = _position_weight(layer.self_attn)
        self.shift = _constant((query_position @ weight + bias)[:, None])  # (Q, 1, 2 d_model)
        self.self_attn = _SelfAttention(layer.self_attn, batch_dim=1)
        self.self_attn_layer_norm = layer.self_attn_layer_norm
        self.encoder_attn = _CrossAttention(layer.encoder_attn, query_position)
        self.encoder_attn_layer_norm = layer.encoder_attn_layer_norm

    def before_memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (Q, B, d_model) to what the self-attention makes of it, and to the queries of the cross-attention."""
        attended = self.self_attn(self._branch_input(x, self.self_attn_layer_norm), self.shift, None)
        x = self._add_branch(x, attended, self.self_attn_layer_norm)
        return x, self.encoder_attn.q_proj(self._branch_input(x, self.encoder_attn_layer_norm))

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps (Q, B, d_model) to the same shape, with the weights (B * heads, Q, L) of the cross-attention."""
        x, query = self.before_memory(x)
        attended, weights = self.encoder_attn(query, key, value, bias)
        return self._feed_forward(self._add_branch(x, attended, self.encoder_attn_layer_norm)), weights


class _FirstDecoderLayer(_DecoderLayer):
    """The layer that starts from zeros."""

    def __init__(self, layer: DetrDecoderLayer, query_position: Tensor) -> None:
        super().__init__(layer, query_position)
        x, query = super().before_memory(torch.zeros_like(query_position)[:, None])
        self.start, self.first_query = _constant(x), _constant(query)
        del self.self_attn, self.self_attn_layer_norm, self.shift, self.encoder_attn.q_proj

    def before_memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The constants, the queries once for each image of (Q, B, d_model)."""
        return self.start, self.first_query.repeat(x.shape[1], 1, 1)


class FusedDecoder(nn.Module):
    """A `DetrDecoder` in eval mode that starts from zeros, without hidden states.

    Args:
        decoder: the decoder.
        query_position: (Q, d_model), which it always uses.
    """

    def __init__(self, decoder: DetrDecoder, query_position: Tensor) -> None:
        super().__init__()
        self.auxiliary_loss = decoder.auxiliary_loss
        self.layernorm = decoder.layernorm
        layers = [layer for layer in decoder.layers if isinstance(layer, DetrDecoderLayer)]
        keys = [layer.encoder_attn.k_proj.weight for layer in layers]
        values = [layer.encoder_attn.v_proj.weight for layer in layers]
        self.key_weight = _constant(torch.cat(keys).T)  # (d_model, layers * d_model)
        self.memory_weight = _constant(torch.cat(keys + values).T)  # (d_model, 2 * layers * d_model)
        self.num_heads = layers[0].encoder_attn.num_heads
        kinds = [_FirstDecoderLayer, *[_DecoderLayer] * (len(layers) - 1)]
        self.layers = nn.ModuleList(kind(layer, query_position) for kind, layer in zip(kinds, layers, strict=True))

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
        """As `DetrDecoder.forward`; of the queries it uses the shape only."""
        # Keys and values of all layers, (B * heads, L, head size) each, and the bias of the scores.
        shift = memory_position @ self.key_weight
        shift = torch.cat((shift, torch.zeros_like(shift)), dim=-1)
        count = 2 * len(self.layers)
        divided = (count, self.num_heads, -1)
        mixed = (memory @ self.memory_weight).unflatten(-1, divided) + shift.unflatten(-1, divided)
        parts = [mixed.select(2, index).transpose(1, 2).flatten(0, 1) for index in range(count)]
        bias = None if memory_mask is None else attention_bias(memory_mask, memory.dtype)
        if bias is not None:
            bias = bias.expand(-1, self.num_heads, -1, -1).flatten(0, 1)

        # The layers, in (Q, B, d_model).
        x = inputs_embeds.transpose(0, 1)
        weights = None
        for layer, key, value in zip(self.layers, parts[: len(self.layers)], parts[len(self.layers) :], strict=True):
            x, weights = layer(x, key, value, bias)
            if self.auxiliary_loss:
                x = self.layernorm(x)
        x = self.layernorm(x.transpose(0, 1))
        if not output_attentions or weights is None:
            return DetrDecoderOutput(last_hidden_state=x)
        return DetrDecoderOutput(last_hidden_state=x, cross_attentions=(weights.unflatten(0, (-1, self.num_heads)),))


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attends from (..., T, head size) to (..., S, head size); gives that and the weights (..., T, S)."""
    scores = query @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    weights = functional.softmax(scores, dim=-1)
    return weights @ value, weights


def _parts(x: Tensor, count: int, dim: int) -> tuple[Tensor, ...]:
    """Equal parts of a tensor.

    The sizes are written out: for `chunk` and `unbind` the exporter writes a count, which opset 17 has no attribute for.
    """
    return x.split([x.shape[dim] // count] * count, dim=dim)


def _position_weight(attention: DetrAttention) -> tuple[Tensor, Tensor]:
    """What positions add to queries and keys: a weight (d_model, 2 d_model), and the queries' bias, (2 d_model)."""
    query, key = attention.q_proj, attention.k_proj
    weight = torch.cat((query.weight * attention.scaling, key.weight)).T
    return weight, torch.cat((query.bias * attention.scaling, torch.zeros_like(key.bias)))


def _output_projection(attention: DetrAttention) -> nn.Linear:
    """The output projection, behind values without their bias."""
    original = attention.out_proj
    projection = nn.Linear(original.in_features, original.out_features, dtype=original.weight.dtype)
    projection.weight.copy_(original.weight)
    projection.bias.copy_(original(attention.v_proj.bias))
    return projection


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)
