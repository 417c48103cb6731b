"""The `.pth` files of facebookresearch/detr and of Table Transformer, which has the same code.

This turns their parameter names into the hub's and infers the configuration.

The shapes of the parameters show everything but three facts: the number of attention heads, whether the last stage is
dilated (DC5), and the dropout, which matters for training only. They come from the training script's `args` when the file
has them. Without `args` the model is taken to have 8 heads, as all published ones have, and to be a DC5 model only if the
caller says so.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor

from detr_export import coco
from detr_export.backbone_config import RESNETS
from detr_export.checkpoints.tensors import named, require_room, shapes_of
from detr_export.config import DetrConfig
from detr_export.pubtables import table_model
from detr_export.runtimes.documents import Count, Probability, Size, shown, typed
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

# What such a file may hold besides tensors: the training script's arguments, a namespace of plain values.
SAFE_GLOBALS = (argparse.Namespace,)
_PANOPTIC_PREFIX = "detr."
_BODY = "backbone.0.body."

# They are applied in this order to each name, after the prefix of a panoptic checkpoint was removed.
_RENAMES = (
    (r"^backbone\.0\.body\.", "model.backbone.conv_encoder.model."),
    (r"^backbone\.1\.row_embed\.", "model.backbone.position_embedding.row_embeddings."),
    (r"^backbone\.1\.col_embed\.", "model.backbone.position_embedding.column_embeddings."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.(encoder|decoder)\.norm\.", r"model.\1.layernorm."),
    (r"^transformer\.", "model."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.linear1\.", ".fc1."),
    (r"\.linear2\.", ".fc2."),
    (r"(\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"(\.decoder\.layers\.\d+)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"(\.decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
)


@dataclass
class _Arguments:
    """The training script's arguments that the shapes of the parameters do not show."""

    nheads: Count = 8
    dropout: Probability = 0.1
    dilation: Union[bool, Size, None] = None
    pre_norm: Optional[bool] = None


def is_original(state_dict: Mapping[str, Any]) -> bool:
    """Whether the names are those of facebookresearch/detr."""
    return any(name.removeprefix(_PANOPTIC_PREFIX).startswith("transformer.") for name in state_dict)


def convert(
    state_dict: Mapping[str, Tensor], args: argparse.Namespace | None, dilation: bool | None
) -> tuple[DetrConfig, dict[str, Tensor]]:
    """Turns an original state dict into a configuration and a state dict with the hub's names.

    Args:
        state_dict: the `model` entry of the file.
        args: the training script's arguments, when the file has them.
        dilation: whether it is a DC5 model; None takes `args.dilation`, or False where there are no arguments.

    Raises:
        CheckpointError: the shapes are not those of any DETR, or `dilation` contradicts `args`.
    """
    panoptic = any(name.startswith(_PANOPTIC_PREFIX) for name in state_dict)
    body = {name.removeprefix(_PANOPTIC_PREFIX): value for name, value in state_dict.items()}
    config = _infer_config(body, args, dilation)
    require_room(shapes_of(body), "the file", config)
    converted: dict[str, Tensor] = {}
    for name, value in body.items():
        head = name.startswith(("bbox_attention.", "mask_head."))
        target = name if head else _rename(name)
        if panoptic and not head:
            target = _PANOPTIC_PREFIX + target
        if "in_proj_" in target:
            kind = target.rpartition("_")[2]
            if not value.dim() or value.shape[0] % 3:
                raise CheckpointError(f"{named(name)} has shape {list(value.shape)}; expected rows of query, key and value")
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[target.replace(f"in_proj_{kind}", f"{part}_proj.{kind}")] = rows.clone()
        else:
            converted[target] = value
    return config, converted


def processor_of(config: DetrConfig) -> DetrImageProcessor:
    """The processor of an original model: the evaluation transform of facebookresearch/detr or of Table Transformer."""
    tables = table_model(config.num_queries, config.num_labels) if config.pre_norm else None
    return DetrImageProcessor(size={"longest_edge": tables.longest_edge} if tables else None)


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _infer_config(body: Mapping[str, Tensor], args: argparse.Namespace | None, dilation: bool | None) -> DetrConfig:
    # What contradicts the options.
    given = {name: getattr(args, name) for name in _Arguments.__annotations__ if hasattr(args, name)}
    said = typed(given, _Arguments, "the checkpoint's own arguments", CheckpointError)
    trained_dilation = said.dilation
    if dilation is not None and trained_dilation is not None and bool(trained_dilation) != dilation:
        raise CheckpointError(f"the checkpoint's own arguments say dilation={bool(trained_dilation)}; leave --dilation out")

    # What the shapes show.
    try:
        classes = body["class_embed.weight"].shape[0] - 1
        queries, d_model = body["query_embed.weight"].shape
        encoder_ffn = body["transformer.encoder.layers.0.linear1.weight"].shape[0]
        decoder_ffn = body["transformer.decoder.layers.0.linear1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"the file has no parameter {error.args[0]!r}, which every original DETR has") from None
    except (IndexError, ValueError):
        raise CheckpointError(
            "class_embed, query_embed or linear1 is not a matrix, as it is in every original DETR"
        ) from None

    pre_norm = "transformer.encoder.norm.weight" in body
    if said.pre_norm not in (None, pre_norm):
        option = "--pre_norm" if said.pre_norm else "no --pre_norm"
        raise CheckpointError(
            f"the checkpoint's own arguments say {option}, but the file has {'a' if pre_norm else 'no'} parameter "
            "'transformer.encoder.norm.weight'"
        )
    tables = table_model(queries, classes) if pre_norm else None

    return DetrConfig(
        backbone=_infer_backbone(body),
        dilation=bool(trained_dilation) if dilation is None else dilation,
        num_queries=queries,
        d_model=d_model,
        encoder_layers=_count(body, "transformer.encoder.layers."),
        decoder_layers=_count(body, "transformer.decoder.layers."),
        encoder_ffn_dim=encoder_ffn,
        decoder_ffn_dim=decoder_ffn,
        encoder_attention_heads=said.nheads,
        decoder_attention_heads=said.nheads,
        dropout=said.dropout,
        position_embedding_type="learned" if "backbone.1.row_embed.weight" in body else "sine",
        pre_norm=pre_norm,
        id2label=tables.id2label if tables else coco.id2label(classes),
    )


def _infer_backbone(body: Mapping[str, Tensor]) -> str:
    depths = tuple(_count(body, f"{_BODY}layer{stage}.") for stage in (1, 2, 3, 4))
    bottleneck = f"{_BODY}layer1.0.conv3.weight" in body
    for name, layout in RESNETS.items():
        if layout == (bottleneck, depths):
            return name
    kind = "bottleneck" if bottleneck else "basic"
    raise CheckpointError(f"the backbone has {kind} stages of {depths} blocks; expected one of {', '.join(RESNETS)}")


def _count(body: Mapping[str, Any], prefix: str) -> int:
    indices = {name[len(prefix) :].partition(".")[0] for name in body if name.startswith(prefix)}
    return len(indices)


def split_file(content: object) -> tuple[Mapping[str, Tensor], argparse.Namespace | None]:
    """Takes the parameters and the training script's arguments out of what `torch.load` returned.

    Raises:
        CheckpointError: it holds no parameters, or something else among them.
    """
    args = content.get("args") if isinstance(content, Mapping) else None
    if isinstance(args, dict):  # forks of the training script store vars(args)
        args = argparse.Namespace(**{name: value for name, value in args.items() if isinstance(name, str)})
    state_dict = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError("the file holds no state dict; expected {'model': {name: tensor}} or {name: tensor}")
    strangers = [
        name for name, value in state_dict.items() if not isinstance(value, torch.Tensor) or not isinstance(name, str)
    ]
    if strangers:
        names = ", ".join(named(name) if isinstance(name, str) else shown(name) for name in strangers[:5])
        raise CheckpointError(f"the file's state dict holds entries that are not named tensors: {names}")
    return state_dict, args if isinstance(args, argparse.Namespace) else None
