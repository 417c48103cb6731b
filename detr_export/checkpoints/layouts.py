"""Parameter names: those of the hub, which the models here have, and those that transformers 5 has for the same parameters.

transformers 5 renames a checkpoint's parameters when it loads them, and back when it saves them. Two kinds of file come out
with other names than the hub's: learned position encodings, which it does not name back, and everything when it is told to
keep its own names (`save_original_format=False`). Its Table Transformer has the hub's names throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from detr_export.config import TRANSFORMERS4, TRANSFORMERS5_NAMES, DetrConfig

_Renames = Sequence[tuple[str, str]]

# From the hub's names. Each is a pattern and what takes its place.
_POSITIONS: _Renames = ((r"\bbackbone\.position_embedding\.", "position_embedding."),)
_DETECTOR: _Renames = (
    (r"\bbackbone\.conv_encoder\.", "backbone."),
    (r"(\.\w*attn)\.out_proj\.", r"\1.o_proj."),
    (r"\b(layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
)
# A block of the mask head is a convolution and a group norm; the three later blocks are each a stage with an adapter.
_BLOCKS = {1: "conv1", 2: "conv2", 3: "fpn_stages.0.refine", 4: "fpn_stages.1.refine", 5: "fpn_stages.2.refine"}
_MASK_HEAD: _Renames = (
    *((rf"^mask_head\.lay{number}\.", f"mask_head.{block}.conv.") for number, block in _BLOCKS.items()),
    *((rf"^mask_head\.gn{number}\.", f"mask_head.{block}.norm.") for number, block in _BLOCKS.items()),
    *((rf"^mask_head\.adapter{number}\.", f"mask_head.fpn_stages.{number - 1}.fpn_adapter.") for number in (1, 2, 3)),
    (r"^mask_head\.out_lay\.", "mask_head.output_conv."),
    (r"^bbox_attention\.([qk])_linear\.", r"bbox_attention.\1_proj."),
)

# To the hub's names, whichever version wrote the file.
_TO_HUB: _Renames = (
    # A backbone that transformers 4 opened through TimmBackbone has a level more.
    (r"\bconv_encoder\.model\._backbone\.", "conv_encoder.model."),
    (r"\bbackbone\.model\.", "backbone.conv_encoder.model."),
    (r"(?<!backbone\.)\bposition_embedding\.", "backbone.position_embedding."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
    *((rf"^mask_head\.{re.escape(block)}\.conv\.", f"mask_head.lay{number}.") for number, block in _BLOCKS.items()),
    *((rf"^mask_head\.{re.escape(block)}\.norm\.", f"mask_head.gn{number}.") for number, block in _BLOCKS.items()),
    *((rf"^mask_head\.fpn_stages\.{number - 1}\.fpn_adapter\.", f"mask_head.adapter{number}.") for number in (1, 2, 3)),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
)
_ONLY_IN_5 = re.compile(r"\.o_proj\.|\.mlp\.fc1\.")  # every transformer layer has them


def to_hub_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters under the hub's names; names that are the hub's already stay."""
    return {_rename(name, _TO_HUB): value for name, value in state_dict.items()}


def has_names_of_5(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the file has transformers 5's own names."""
    return any(_ONLY_IN_5.search(name) for name in state_dict)


def from_hub_names(state_dict: Mapping[str, Tensor], config: DetrConfig) -> dict[str, Tensor]:
    """The parameters under the names that `config.layout` asks for."""
    if config.layout == TRANSFORMERS4 or config.pre_norm:
        return dict(state_dict)
    renames = (*_POSITIONS, *_DETECTOR, *_MASK_HEAD) if config.layout == TRANSFORMERS5_NAMES else _POSITIONS
    return {_rename(name, renames): value for name, value in state_dict.items()}


def _rename(name: str, renames: _Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
